"""Take the sharded tensors out of the state of a run, and put them back, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from fit_core import RunnerState, unwrap
from torch import Tensor, nn

from ..names import bare_name
from ..shards import is_sharded, local
from .shard_files import read_shards

__all__ = ["fill", "place_of", "take_shards"]

Place = tuple[str, ...]
Where = Callable[[Place, Tensor], Any]
"""Returns the sharded tensor like which a tensor at a place should be split, or None to load all of it."""


def take_shards(content: Mapping[str, Any], rank: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a state with empty tensors on the meta device in place of sharded ones, and these by their place.

    In a run of a sharded model, the gradients of an open window are whole on each process. They are taken out as well.
    """
    shards: dict[str, Tensor] = {}
    left = {name: part if name == "ranks" else _map(part, (name,), _taker(shards)) for name, part in content.items()}
    if shards:
        own = content["ranks"][0]
        gradients = _map(own["gradients"], ("ranks", str(rank), "gradients"), _taker(shards, all=True))
        left["ranks"] = [{**own, "gradients": gradients}]
    return left, shards


def fill(content: dict[str, Any], path: Path, like: Where | None = None, rank: int | None = None) -> dict[str, Any]:
    """Return a checkpoint with its sharded tensors, of which each process reads its part.

    Args:
        content: what is in the file, with empty tensors in their place.
        path: the file.
        like: how to split a tensor. None loads all of it.
        rank: whose gradients of an open window to load, None for those of all ranks.

    Raises:
        pickle.UnpicklingError: the description of the shards contains more than that.
    """
    if "shards" not in content and like is None:
        return content
    targets: dict[str, Tensor] = {}

    def target(place: Place, value: Tensor) -> Tensor:
        model = like(place, value) if like else None
        if value.is_meta and "shards" in content:
            made = torch.empty(value.shape, dtype=value.dtype)
            if model is not None:
                made = torch.empty_like(model, dtype=value.dtype, requires_grad=False)
            targets["/".join(place)] = made
            return made
        return value if model is None else _split(value, model)

    others = {name: part for name, part in content.items() if name not in ("ranks", "shards")}
    filled = {name: _map(part, (name,), target) for name, part in others.items()}
    ranks = list(content["ranks"])
    for number, part in enumerate(ranks):
        if rank in (None, number):
            place = "ranks", str(number), "gradients"
            ranks[number] = {**part, "gradients": _map(part["gradients"], place, target)}
    if targets:
        read_shards(targets, path.parent / content["shards"]["folder"])
    return {**filled, "ranks": ranks}


def place_of(state: RunnerState) -> Where | None:
    """Return how the run splits tensors of a checkpoint: as their parameter. None if nothing is sharded."""
    named = {
        f"{kind}/{bare_name(name)}": value
        for kind, module in (("model", unwrap(state.model)), ("criterion", unwrap(state.criterion)))
        if isinstance(module, nn.Module)
        for name, value in module.state_dict().items()
    }
    sharded = {value.shape: value for value in named.values() if is_sharded(value)}
    if not sharded:
        return None
    stepped = list(chain.from_iterable(group["params"] for group in state.optimizer.param_groups))

    def like(place: Place, value: Tensor) -> Any:
        if place[:2] == ("optimizer", "state"):
            found = stepped[int(place[2])] if int(place[2]) < len(stepped) else None
        elif place[0] == "ranks":
            return None
        else:
            found = named.get("/".join(place), named.get(f"model/{place[-1]}"))  # an average has the model's names
        if found is None or not is_sharded(found) or found.shape != value.shape:
            found = sharded.get(value.shape) if value.is_meta else None
        return found

    return like


def _map(value: Any, place: Place, change: Callable[[Place, Tensor], Any]) -> Any:
    """Return a nested state with other tensors."""
    if isinstance(value, Tensor):
        return change(place, value)
    if isinstance(value, dict):
        return type(value)((key, _map(part, (*place, str(key)), change)) for key, part in value.items())
    if type(value) in (list, tuple):
        return type(value)(_map(part, (*place, str(number)), change) for number, part in enumerate(value))
    return value


def _taker(shards: dict[str, Tensor], *, all: bool = False) -> Callable[[Place, Tensor], Tensor]:
    def take(place: Place, value: Tensor) -> Tensor:
        if not all and not is_sharded(value):
            return value
        shards["/".join(place)] = local(value) if all else value.detach()
        return torch.empty(value.shape, dtype=value.dtype, device="meta")

    return take


def _split(value: Tensor, like: Any) -> Tensor:
    """Return this process's part of a whole tensor, without an exchange."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
