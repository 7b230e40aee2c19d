"""Clip gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from fit_core import Callback, RunnerState, unwrap
from torch import Tensor, nn

from .arguments import check_number, names_of
from .names import bare_name
from .shards import whole

__all__ = ["AdaptiveGradientClipping", "GradientClipping"]


class GradientClipping(Callback):
    """Clip gradients by norm, with torch's `clip_grad_norm_`, or by value.

    Gradients are complete (of the whole accumulation window and all processes) and unscaled (fp16) when they are
    clipped. The mean norm before clipping is logged as `grad_norm`. It stays on the device and is read once per
    epoch.

    Args:
        max_norm: the largest norm of all gradients together, above 0. None does not clip by norm.
        value: the largest absolute value of an entry, above 0. None does not clip by value.
        norm_type: the order p of the norm. `inf` means the largest absolute value.

    Raises:
        ValueError: neither or both of `max_norm` and `value` are passed, or one is not above 0.

    Examples:
        >>> GradientClipping(1.0)
        >>> GradientClipping(value=0.5)
    """

    capturable = True

    def __init__(self, max_norm: float | None = None, *, value: float | None = None, norm_type: float = 2.0) -> None:
        if (max_norm is None) == (value is None):
            raise ValueError(
                f"expected either max_norm or value, got max_norm={max_norm}, value={value}. Pass one of them"
            )
        check_number("value", 1 if value is None else value, "(0, inf]")
        check_number("max_norm", 1 if max_norm is None else max_norm, "(0, inf]")
        check_number("norm_type", norm_type, "(0, inf]")
        self.max_norm = max_norm
        self.value = value
        self.norm_type = norm_type
        self._total, self._count = torch.zeros(()), torch.zeros((), dtype=torch.long)

    def on_loader_begin(self, state: RunnerState) -> None:
        """Reset the mean, unless the run was interrupted in this epoch."""
        if state.is_train:
            self._total, self._count = self._total.to(state.device), self._count.to(state.device)
            if not state.batch_idx:
                self._total.zero_()  # in place, since a graph adds to these tensors
                self._count.zero_()

    def on_before_step(self, state: RunnerState) -> None:
        """Clip the gradients."""
        parameters = list(_stepped(state.optimizer))
        if self.max_norm is None:
            assert self.value is not None
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], self.norm_type)
            nn.utils.clip_grad_value_(parameters, self.value)
        else:
            norm = nn.utils.clip_grad_norm_(parameters, self.max_norm, self.norm_type)
        norm = whole(norm)
        if state.grad_scaler.is_enabled():  # A step that the scaler skips has an infinite norm.
            is_finite = torch.isfinite(norm)
            self._total += torch.where(is_finite, norm, 0.0)
            self._count += is_finite
        else:
            self._total += norm
            self._count += 1

    def on_loader_end(self, state: RunnerState) -> None:
        """Log the mean norm."""
        if state.is_train:
            state.logs["grad_norm"] = float(self._total / self._count)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sum and the number of the norms in this epoch."""
        return {"total": self._total, "count": self._count}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Restore the mean."""
        self._total, self._count = state_dict["total"].clone(), state_dict["count"].clone()


class AdaptiveGradientClipping(Callback):
    """Clip the gradient of each unit to a share of the norm of its weights (Brock et al. 2021, arXiv:2102.06171).

    The gradient `g` of a unit (a row of a weight matrix, a filter of a convolution, a whole bias or gain) becomes
    `g * clip * max(|w|, eps) / |g|` if `|g| / max(|w|, eps)` exceeds `clip`. Norms are Euclidean.

    Args:
        clip: the share, above 0. The paper uses 0.01 for batches of 4096, more for smaller ones.
        eps: the smallest norm of weights to divide by, so that weights that start at zero can change.
        exclude: names of parameters that are not clipped, or the start of their names. The paper excludes the last
            linear layer (`exclude=["fc."]`).

    Raises:
        ValueError: `clip` or `eps` is not above 0, or `exclude` does not match any parameter.

    Examples:
        >>> AdaptiveGradientClipping(0.01, exclude=["fc."])
    """

    capturable = True

    def __init__(self, clip: float = 0.01, *, eps: float = 1e-3, exclude: Iterable[str] = ()) -> None:
        check_number("clip", clip, "(0, inf)")
        check_number("eps", eps, "(0, inf)")
        self.clip = clip
        self.eps = eps
        self.exclude = names_of("exclude", exclude)
        self._parameters: list[nn.Parameter] = []

    def on_begin(self, state: RunnerState) -> None:
        """Find the parameters to clip."""
        names = {bare_name(name): parameter for name, parameter in unwrap(state.model).named_parameters()}
        for start in self.exclude:
            if not any(name.startswith(start) for name in names):
                raise ValueError(
                    f"expected exclude to match parameters, got {start!r}. Pass the start of one of {', '.join(names)}"
                )
        self._parameters = [parameter for name, parameter in names.items() if not name.startswith(self.exclude)]

    def on_before_step(self, state: RunnerState) -> None:
        """Clip the gradients."""
        stepped = {id(parameter) for parameter in _stepped(state.optimizer)}  # by this optimizer of several
        for parameter in self._parameters:
            if parameter.grad is not None and id(parameter) in stepped:
                limit = self.clip * _unit_norm(parameter.detach()).clamp_min(self.eps)
                norm = _unit_norm(parameter.grad)
                parameter.grad.mul_(torch.where(norm > limit, limit / norm.clamp_min(1e-6), 1.0))


def _stepped(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _unit_norm(values: Tensor) -> Tensor:
    """Return the norm of each unit, in a shape that broadcasts with `values`."""
    norm: Tensor = torch.linalg.vector_norm(values, dim=tuple(range(1, values.dim())) or None, keepdim=values.dim() > 1)
    return norm
