"""Capture a step as a CUDA graph, on devices that have them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

__all__ = ["Capture", "CudaGraph", "captures", "waits"]


def captures(device: torch.device) -> bool:
    """Return whether a step on a device is captured as a CUDA graph. On others it is compiled."""
    return device.type == "cuda"


@contextmanager
def waits() -> Iterator[list[str]]:
    """Note the lines at which the host waits for a CUDA device."""
    lines: list[str] = []
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield lines
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for warning in caught:
        if "synchronizing CUDA operation" in str(warning.message):
            lines.append(f"{warning.filename}:{warning.lineno}")
        elif "Synchronization debug mode" not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


class Capture:
    """Hold the stream and the memory that the graphs of a run share.

    Args:
        device: the CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        new_stream: Any = torch.cuda.Stream  # torch does not annotate it
        self.stream: torch.cuda.Stream = new_stream(device)
        self._branch: torch.cuda.Stream = new_stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def on_stream(self) -> Iterator[None]:
        """Run a step as usual on the stream on which it will be captured."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        torch.cuda.current_stream().wait_stream(self.stream)

    def fork(self) -> None:
        """Note where a branch may begin: after what was captured so far."""
        self._fork = self.stream.record_event()

    @contextmanager
    def on_branch(self) -> Iterator[None]:
        """Capture work that runs beside what was captured since `fork`, and has ended when the step ends."""
        self._branch.wait_event(self._fork)
        with torch.cuda.stream(self._branch):
            yield
        self.stream.wait_stream(self._branch)


class CudaGraph:
    """The kernels of a step, launched as one.

    Nothing is computed while the step is captured. A graph reads its inputs from the tensors that the step has read,
    and writes its outputs where the step has written them.

    Args:
        capture: what the graphs of a run share.
        inputs: the tensors of a batch.
        step: given copies of them, makes a step and returns its outputs.
    """

    def __init__(self, capture: Capture, inputs: list[Tensor], step: Callable[[list[Tensor]], list[Tensor]]) -> None:
        own = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs]
        self._inputs = [tensor.detach() for tensor in own]
        self._graph = torch.cuda.CUDAGraph()
        # Only this thread is asked to stay away from other calls of CUDA: a loader's may pin memory meanwhile.
        options: dict[str, Any] = {"stream": capture.stream, "capture_error_mode": "thread_local"}
        try:
            # torch leaves the stream of a capture that fails the current one, so it is restored around it.
            here = torch.cuda.stream(torch.cuda.current_stream())
            with here, torch.cuda.graph(self._graph, pool=capture.pool, **options):
                self._outputs = step(own)
        except Exception:
            with suppress(RuntimeError):  # The device reports the error until it has been waited for.
                torch.cuda.synchronize()
            raise

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        """Run the step on other numbers. The outputs are overwritten by the next call."""
        for own, tensor in zip(self._inputs, inputs, strict=True):
            own.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._outputs
