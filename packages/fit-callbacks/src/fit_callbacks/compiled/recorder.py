"""Record a step as a graph, and replay it in the place of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

from fit_core import Metric, RunnerState
from torch import Tensor, nn

from . import cuda
from .batches import flatten, unflatten
from .gradients import Gradients
from .meter import LossMeter
from .optimizer import GraphedOptimizer
from .reach import reach
from .reasons import others_have
from .traced import TracedGraph

__all__ = ["Graph", "Recorder"]

RESULTS = ("input", "target", "output", "loss", "losses", "weight", "batch_size")
"""The fields of the state that a step may set."""

BETWEEN = ("on_loader_begin", "on_loader_end", "on_epoch_begin", "on_epoch_end")
"""The hooks that see the results of the last batch of a loader, and of no other."""


@dataclass
class Graph:
    """A recorded step.

    Attributes:
        run: runs it on the tensors of a batch, and returns tensors.
        results: what it sets in the state, with other tensors in the place of those.
        opens: whether it is for the first batch of an accumulation window.
        closes: whether it is for the last, so that an optimizer step is in it.
        adds_loss: whether it adds the loss to the mean of the loader.
    """

    run: Callable[[list[Tensor]], list[Tensor]]
    results: dict[str, Any]
    opens: bool
    closes: bool
    adds_loss: bool


class Recorder:
    """Record the steps of a run, and replay them.

    Args:
        state: the state of the run.
        step: the step to record.
        optimizer: the optimizer in it.
        parts: the modules and callbacks in it, by name.
    """

    def __init__(
        self, state: RunnerState, step: Callable[[], None], optimizer: GraphedOptimizer, parts: dict[str, Any]
    ) -> None:
        self._state = state
        self._step = step
        self._optimizer = optimizer
        self._parts = parts
        self._capture = cuda.Capture(state.device) if cuda.captures(state.device) else None
        self._parameters = [parameter for group in optimizer.groups for parameter in group["params"]]
        self._gradients = Gradients(self._parameters) if state.accumulate_steps > 1 else None
        self._meter = LossMeter(state.device)
        self._was_eager = True
        self._inside: Sequence[Metric] = ()
        if self._capture is not None:
            self._inside = [metric for metric in state.metrics if getattr(metric, "capturable", False)]
        # The next batch overwrites the outputs of a CUDA graph. Callbacks and metrics that may keep them get copies.
        keep = len(self._inside) < len(state.metrics) or others_have(state, ("on_batch_end", "on_checkpoint"))
        self._copies = self._capture is not None and keep
        self._copies_last = self._capture is not None and others_have(state, BETWEEN)

    def run_eagerly(self) -> None:
        """Run the step as usual, on CUDA with the kernels and on the stream of the graphs."""
        self._was_eager = True
        optimizer = self._optimizer
        if self._capture is None:
            self._step()
            return
        optimizer.copy_rates()
        # The counters that a first step makes are too coarse for the foreach kernels of a graph.
        kernels = optimizer.with_tensors() if optimizer.is_fused or optimizer.state else nullcontext()
        with self._capture.on_stream(), kernels:
            self._step()

    def record(self, tensors: list[Tensor], opens: bool = True, closes: bool = True) -> Graph:
        """Record the step of a batch. It is not made yet.

        Args:
            tensors: the tensors of the batch.
            opens: whether it is the first of an accumulation window.
            closes: whether it is the last.

        Raises:
            StateIsNewError: it creates a part of the optimizer's state. The step has to run as usual first.
            Exception: it cannot be recorded. The state is as before.
        """
        state, window = self._state, None if opens and closes else self._gradients
        self._optimizer.copy_rates()
        if window is not None and not opens:
            window.adopt()
        batch = state.input, state.target
        before = {name: getattr(state, name) for name in RESULTS}
        others = [place.value for place in reach(self._parts) if isinstance(place.value, nn.Parameter)]
        gradients = [(parameter, parameter.grad) for parameter in (*self._parameters, *others)]
        results: dict[str, Any] = {}
        adds_loss = False

        def step(own: list[Tensor]) -> list[Tensor]:
            nonlocal adds_loss
            state.input, state.target = unflatten(batch, iter(own))
            unchanged = {**before, "input": state.input, "target": state.target}
            with self._optimizer.with_tensors(), self._forking() as forked:
                self._step()
            if closes:
                state.loop.finish_step()
            adds_loss = self._meter.add(state)
            if self._inside and state.output is not None:
                with self._branch(forked):
                    state.loop.measure(self._inside)
            if window is not None and opens:
                window.take()
            values = {name: getattr(state, name) for name in RESULTS}
            results.update({name: value for name, value in values.items() if value is not unchanged[name]})
            outputs: list[Tensor] = []
            flatten(results, outputs)
            return [tensor.detach() for tensor in outputs]

        run: Callable[[list[Tensor]], list[Tensor]]
        try:
            with state.loop.rehearse(), self._optimizer.keeping_state():
                if self._capture is not None:
                    run = cuda.CudaGraph(self._capture, tensors, step)
                else:
                    run = TracedGraph(tensors, step, self._changeable())
            if window is not None and not window.match():
                raise RuntimeError("the parameters that get a gradient differ between the batches of a window")
        finally:
            for name, value in before.items():
                setattr(state, name, value)
            for parameter, gradient in gradients:
                parameter.grad = gradient
            self._was_eager = True
        return Graph(run, results, opens, closes, adds_loss)

    def can_continue(self) -> bool:
        """Return whether a graph can continue a window, which an eager step may have begun, or a callback changed."""
        if self._gradients is None or (not self._was_eager and self._gradients.are_shown()):
            return True
        self._was_eager = True
        return self._gradients.match()

    def replay(self, graph: Graph, tensors: list[Tensor]) -> None:
        """Make the step of a batch by a graph.

        Args:
            graph: one that was recorded for its shapes and its place in the window.
            tensors: the tensors of the batch.
        """
        state = self._state
        self._optimizer.copy_rates()
        if self._was_eager:
            self._show_gradients(graph)
        if graph.adds_loss:
            self._meter.show(state)
        outputs = graph.run(tensors)
        if self._copies or (self._copies_last and state.num_batches in (None, state.batch_idx + 1)):
            outputs = [output.clone() for output in outputs]
        parts = iter(outputs)
        for name, value in graph.results.items():
            setattr(state, name, unflatten(value, parts))
        state.loop.note_step(self._inside if "output" in graph.results else ())

    def _show_gradients(self, graph: Graph) -> None:
        """Drop the gradients of an eager step, or move them to where the graphs add to them."""
        is_whole = graph.opens and graph.closes
        if self._gradients is None or is_whole:
            for parameter in self._parameters:
                parameter.grad = None
        elif graph.opens:
            self._gradients.show()
        else:
            self._gradients.adopt()
        self._was_eager = is_whole and self._gradients is not None

    @contextmanager
    def _forking(self) -> Iterator[list[Any]]:
        """Note where the backward pass begins, beside which metrics may run. Yield what they would see there."""
        seen: list[Any] = []
        capture, runner = self._capture, self._parts["runner"]
        if capture is None or not self._inside:
            yield seen
            return
        backward = runner.backward

        def fork(*args: Any, **options: Any) -> None:
            seen[:] = self._measured()
            capture.fork()
            backward(*args, **options)

        with mock.patch.object(runner, "backward", fork):
            yield seen

    def _branch(self, seen: list[Any]) -> AbstractContextManager[None]:
        """Return the context for metrics: beside the backward pass, unless what they see has changed since."""
        if self._capture is None or not seen or seen != self._measured():
            return nullcontext()
        return self._capture.on_branch()

    def _measured(self) -> list[tuple[int, int]]:
        """Return which tensors the metrics see, and how often they were changed."""
        tensors: list[Tensor] = []
        flatten((self._state.output, self._state.target), tensors)
        return [(id(tensor), tensor._version) for tensor in tensors]

    def _changeable(self) -> list[Tensor]:
        """Return the tensors that a step may change in place."""
        owned: list[Any] = [*self._parameters, *(self._gradients.tensors() if self._gradients else ())]
        owned += [value for values in self._optimizer.state.values() for value in values.values()]
        owned += [place.value for place in reach(self._parts)]
        owned += [tensor.grad for tensor in owned if isinstance(tensor, nn.Parameter)]
        return list({id(tensor): tensor for tensor in owned if isinstance(tensor, Tensor)}.values())
