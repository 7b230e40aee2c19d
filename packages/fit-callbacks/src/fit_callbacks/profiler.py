"""Record the operations of a few steps."""

from __future__ import annotations

import os
from typing import Any

from fit_core import Callback, RunnerState

from .arguments import check_whole
from .harmless import Harmless
from .paths import local_folder
from .ranks import print_line

__all__ = ["Profiler"]


class Profiler(Callback):
    """Record a trace of some training steps with torch.profiler. Open it at ui.perfetto.dev or in chrome://tracing.

    It waits for `wait` steps, traces and discards `warmup` steps, and records `active` steps, on rank 0. Then it
    writes the trace, and the run continues without it.

    Args:
        log_dir: the folder for the trace, `*.pt.trace.json`. TensorBoard's profile plugin reads it too.
        wait: training steps before the warmup.
        warmup: steps that are traced and discarded.
        active: steps that are recorded, 1 or more.
        **options: options of `torch.profiler.profile`, such as `with_stack=True`, `profile_memory=True`.

    Examples:
        >>> Profiler("runs/a")
    """

    def __init__(
        self, log_dir: str | os.PathLike[str], *, wait: int = 10, warmup: int = 3, active: int = 5, **options: Any
    ) -> None:
        check_whole("wait", wait, 0)
        check_whole("warmup", warmup, 0)
        check_whole("active", active, 1)
        self.log_dir = str(local_folder("log_dir", log_dir))
        self.wait, self.warmup, self.active = wait, warmup, active
        self.options = options
        self._profile: Any = None
        self._harmless = Harmless("Profiler")

    def on_begin(self, state: RunnerState) -> None:
        """Prepare the trace."""
        if state.rank:
            return
        self._harmless.begin()
        from torch.profiler import profile, schedule, tensorboard_trace_handler

        self._left = self.wait + self.warmup + self.active
        self._profile = profile(
            schedule=schedule(wait=self.wait, warmup=self.warmup, active=self.active, repeat=1),
            on_trace_ready=tensorboard_trace_handler(self.log_dir),
            **self.options,
        )
        self._profile.start()

    def on_batch_end(self, state: RunnerState) -> None:
        """Count a training step. Write the trace after the last one."""
        if self._profile is not None and state.is_train:
            self._left -= 1
            with self._harmless(f"could not write a trace to {self.log_dir}"):
                self._profile.step()
            if not self._left:
                self._stop(state)

    def on_end(self, state: RunnerState) -> None:
        """Write the trace of a run that was shorter."""
        if self._profile is not None:
            self._stop(state)

    def _stop(self, state: RunnerState) -> None:
        profile, self._profile = self._profile, None
        with self._harmless(f"could not write a trace to {self.log_dir}"):
            profile.stop()
        if self._left >= self.active:
            print_line(state, "Profiler: the run ended before any step was recorded. Pass a smaller wait")
