"""Do something every N steps."""

from __future__ import annotations

from fit_core import RunnerState

__all__ = ["check_every", "is_due"]


def check_every(name: str, every: int | None) -> None:
    """Check that a period is a number of steps, 1 or more, or None for never.

    Raises:
        ValueError: it is something else.
    """
    if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ValueError(
            f"expected {name} to be a number of optimizer steps, 1 or more, or None for never, got {every!r}"
        )


def is_due(state: RunnerState, every: int | None) -> bool:
    """Return whether the last training batch completed a step whose number is a multiple of `every`."""
    return every is not None and state.is_train and state.is_optimizer_step and state.global_step % every == 0
