"""Prepare an optimizer so that its step can be part of a graph, and its rates can change between replays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import cuda

__all__ = ["GraphedOptimizer", "StateIsNewError", "why_not_optimizer"]

FUSED = ("SGD", "Adam", "AdamW")
"""The optimizers whose fused kernels read the rate from the device, and do not need the host for fp16."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""The parameters that these kernels take."""
COUNTERS = ("step", "mu_product", "eta", "mu")
"""Counters in the state of a parameter, and tensors computed from them. All others have the shape of the parameter."""


def why_not_optimizer(optimizer: Optimizer) -> str | None:
    """Return why the step of an optimizer cannot be part of a graph, None if it can."""
    name = type(optimizer).__name__
    is_torchs = getattr(torch.optim, name, None) is type(optimizer)
    if not is_torchs or (name != "SGD" and "capturable" not in optimizer.defaults):
        return f"it does not know whether the step of {name} can be part of a graph. It knows SGD, Adam and AdamW"
    if any(group.get("differentiable") for group in optimizer.param_groups):
        return f"{name} is differentiable"
    hooks = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    if any(getattr(optimizer, hook, None) for hook in hooks):
        return f"{name} has hooks, which would not be called"
    step = vars(optimizer).get("step")
    if step is not None and not hasattr(step, "_wrapped_by_lr_sched"):
        return f"{name}.step has been replaced"
    return None


class StateIsNewError(Exception):
    """A step has created a part of the optimizer's state, which a graph would create again at each step."""


class GraphedOptimizer:
    """An optimizer whose step reads its learning rates and counters from tensors.

    The flags and tensors are in its groups only while a step runs, so that schedules, logs and checkpoints see numbers
    as usual. On CUDA the fused kernels are used where the optimizer has them, as `fused=True` does.

    Args:
        optimizer: one for which `why_not_optimizer` returns None.
        device: the device of its parameters.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        self.groups = optimizer.param_groups
        self.state = optimizer.state
        parameters = [parameter for group in self.groups for parameter in group["params"]]
        self.is_fused = (
            cuda.captures(device)
            and type(optimizer).__name__ in FUSED
            and not any(map(_avoids_fused, self.groups))
            and all(cuda.captures(p.device) and p.dtype in DTYPES for p in parameters)
        )
        self._number = torch.float32 if self.is_fused else torch.float64  # what the fused kernels read
        self._device = device
        self.rates = [self._rate(group["lr"]) for group in self.groups]
        self._last = [group["lr"] for group in self.groups]
        self._first: Any = None
        self.move_counters()

    def move_counters(self) -> None:
        """Move the counters of steps to where a graph can change them, as exact as the kernels allow.

        A foreach step computes `1 - beta ** step` in the precision of the counter, in which float32 is too coarse.
        """
        self._place_counters(self._device, self._number)
        if self._first is None:
            self._first = next(iter(self.state.values()), None)

    def put_back(self) -> None:
        """Put the counters where an optimizer without graphs has them: on the CPU unless it is fused or capturable."""
        if self.is_current(self.optimizer):
            stay = any(group.get("fused") or group.get("capturable") for group in self.groups)
            usual = torch.float64 if torch.get_default_dtype() is torch.float64 else torch.float32
            self._place_counters(self._device if stay else torch.device("cpu"), usual)

    def is_current(self, optimizer: Optimizer) -> bool:
        """Return whether an optimizer has the same groups, and the tensors in its state are the same."""
        is_same = optimizer.state is self.state and optimizer.param_groups is self.groups
        first = next(iter(self.state.values()), None)
        return is_same and len(self.groups) == len(self.rates) and (first is self._first or self._first is None)

    def _place_counters(self, device: torch.device, dtype: torch.dtype) -> None:
        for parameter, values in self.state.items():
            for name, value in values.items():
                if name in COUNTERS and isinstance(value, Tensor):
                    # The load_state_dict of torch converts all but "step" to the dtype of the parameter.
                    follows = name != "step" and parameter.is_floating_point()
                    values[name] = value.to(
                        device, torch.promote_types(parameter.dtype, torch.float32) if follows else dtype
                    )

    @contextmanager
    def keeping_state(self) -> Iterator[None]:
        """Let a step run that must not create or replace tensors in the state, as the first step of a parameter does.

        Raises:
            StateIsNewError: it did. They are removed.
        """
        before = {parameter: dict(values) for parameter, values in self.state.items() if values}
        is_new = True
        try:
            yield
            is_new = _ids(self.state) != _ids(before)
        finally:
            if is_new:
                for parameter, values in list(self.state.items()):
                    values.clear()
                    values.update(before.get(parameter, {}))
        if is_new:
            raise StateIsNewError

    def copy_rates(self) -> None:
        """Copy changed learning rates to the device."""
        for number, group in enumerate(self.groups):
            rate = group["lr"]
            if rate is not self._last[number] or isinstance(rate, Tensor):  # a tensor may have changed in place
                self._last[number] = rate
                self.rates[number].fill_(rate)

    @contextmanager
    def with_tensors(self) -> Iterator[None]:
        """Let the optimizer step with its rates as tensors, and the flags that a graph needs. Copy the rates before."""
        attributes, step = vars(self.optimizer), self.optimizer.step
        kept = attributes.get("step")  # that of a scheduler, which counts the steps

        def step_with_tensors(closure: Any = None) -> Any:
            if self.is_fused:
                self._begin_momentum()
            with self._flags():
                return step(closure)

        attributes["step"] = step_with_tensors
        try:
            with self._scaling() if self.is_fused else nullcontext():
                yield
        finally:
            del attributes["step"]
            if kept is not None:
                attributes["step"] = kept

    def _begin_momentum(self) -> None:
        """Create the momentum of parameters that have none yet, with which their first step is the same.

        Fused SGD creates it if none has any, and raises if only some have. It leaves it uninitialized if fp16 skips
        that step.
        """
        for group in self.groups:
            for parameter in group["params"] if group.get("momentum") and not group["dampening"] else ():
                if parameter.grad is not None and self.state[parameter].get("momentum_buffer") is None:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @contextmanager
    def _flags(self) -> Iterator[None]:
        flags = {"foreach": not self.is_fused, "capturable": True, "fused": self.is_fused}
        kept: list[dict[str, Any]] = []
        for group, rate in zip(self.groups, self.rates, strict=True):
            changed = {"lr": rate, **{name: flag for name, flag in flags.items() if name in group}}
            kept.append({name: group[name] for name in changed})
            group.update(changed)
        # So the others take the way without reading numbers that torch.compile takes too.
        is_compiling = nullcontext() if self.is_fused else mock.patch("torch.compiler.is_compiling", return_value=True)
        try:
            with is_compiling:
                yield
        finally:
            for group, values in zip(self.groups, kept, strict=True):
                group.update(values)

    @contextmanager
    def _scaling(self) -> Iterator[None]:
        """Let the scaler of fp16 know that the fused kernels unscale the gradients themselves."""
        optimizer: Any = self.optimizer
        had_scaling = hasattr(optimizer, "_step_supports_amp_scaling")
        optimizer._step_supports_amp_scaling = True
        try:
            yield
        finally:
            if not had_scaling:
                del optimizer._step_supports_amp_scaling

    def _rate(self, rate: Any) -> Tensor:
        return torch.full((), float(rate), dtype=self._number, device=self._device)


def _avoids_fused(group: dict[str, Any]) -> bool:
    """Return whether fused kernels are not for a group. With dampening, the first step of momentum is another one."""
    return bool(group.get("foreach") or (group.get("dampening") and not group.get("fused")))


def _ids(state: dict[Tensor, dict[str, Any]]) -> dict[int, dict[str, int]]:
    """Return which objects are in the state of an optimizer."""
    return {id(p): {name: id(value) for name, value in values.items()} for p, values in state.items() if values}
