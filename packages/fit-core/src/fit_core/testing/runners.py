"""Provide small runs for the checks, and the other callbacks in them."""

from __future__ import annotations

import io
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn

from fit_core import Callback, Runner, RunnerState

from .values import flat, from_file, to_file

__all__ = [
    "CountSteps",
    "FirstMemories",
    "OwnStep",
    "Scale",
    "SeveralLosses",
    "Snapshots",
    "StopAt",
    "Temperature",
    "WholeBatches",
    "network",
    "vectors",
]


def network() -> nn.Module:
    """Return a small network with batch statistics and random numbers, which make exact resume hard."""
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3))


def vectors(seed: int) -> list[Any]:
    """Return batches of 3 classes. The last one is short."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (8, 8, 8, 8, 5)
    return [(torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


class Temperature(nn.Module):
    """Scale the output by a trainable parameter before the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of the scaled output."""
        return nn.functional.cross_entropy(self.scale * output, target)


class SeveralLosses(Runner):
    """Set a dict of losses in `forward`, and a tensor as weight."""

    def forward(self) -> None:
        """Set two losses, and a weight."""
        state = self.state
        state.output = state.model(state.input)
        state.weight = torch.tensor(float(len(state.output)))
        if state.needs_loss:
            size = state.output.square().mean()
            state.loss = {"loss": state.criterion(state.output, state.target) + 0.01 * size, "size": size}


class WholeBatches(Runner):
    """Use batches that are dicts in `forward`. The target is None for metrics and callbacks."""

    def forward(self) -> None:
        """Use parts of the batch."""
        state = self.state
        state.output = state.model(state.input["input"])
        if state.needs_loss:
            state.loss = state.criterion(state.output, state.input["label"])


class OwnStep(Runner):
    """Override the step, and set the loss after its backward pass."""

    def _make_step(self) -> None:
        state = self.state
        with self.autocast():
            state.output = state.model(state.input)
            loss = state.criterion(state.output, state.target)
        if state.is_train:
            self.backward(loss)
            self.optimizer_step()
        state.loss = loss


class Snapshots(Callback):
    """Keep the state at checkpoints, as the bytes of a file that plain torch can read.

    Args:
        numbers: the checkpoints to save, which takes most of the time of a small run. By default, each.
    """

    def __init__(self, numbers: Container[int] = range(10**9)) -> None:
        self.saved: dict[int, io.BytesIO] = {}
        self._numbers = numbers
        self._count = 0

    def on_checkpoint(self, state: RunnerState) -> None:
        """Read the state, and save it."""
        saved = state.state_dict()
        if self._count in self._numbers:
            self.saved[self._count] = to_file(saved)
        self._count += 1

    def load(self, number: int) -> Any:
        """Load a saved state with plain torch."""
        return from_file(self.saved[number])


class FirstMemories(Callback):
    """Record the state of callbacks at the start of a run."""

    def on_epoch_begin(self, state: RunnerState) -> None:
        """Keep the first one."""
        if not hasattr(self, "memories"):
            self.memories = flat(state.state_dict()["callbacks"])


class CountSteps(Callback):
    """Wrap the step, and count its calls and the batches."""

    def on_begin(self, state: RunnerState) -> None:
        """Wrap the step."""
        step, self.steps, self.batches = state.make_step, 0, 0

        def counted() -> None:
            self.steps += 1
            step()

        state.make_step = counted

    def on_batch_end(self, state: RunnerState) -> None:
        """Count the batch."""
        self.batches += 1


class StopAt(Callback):
    """Stop the run after a batch: (epoch, is_train, batch_idx)."""

    def __init__(self, *place: Any) -> None:
        self.place: tuple[Any, ...] | None = place

    def on_batch_end(self, state: RunnerState) -> None:
        """Stop at this place."""
        if self.place == (state.epoch, state.is_train, state.batch_idx):
            self.place = None  # only once
            state.should_stop = True


class Scale(nn.Module):
    """Return the input times a trainable parameter, 1 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, input: Tensor) -> Tensor:
        """Return the scaled input."""
        return input * self.scale
