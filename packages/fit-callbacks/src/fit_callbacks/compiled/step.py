"""Run the training step of a batch as one graph."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from fit_core import HOOKS, Callback, RunnerState
from torch import Tensor

from fit_callbacks.ranks import print_line

from . import cuda
from .batches import flatten, shown
from .guard import Guard
from .optimizer import GraphedOptimizer, StateIsNewError
from .progress import Progress
from .reasons import marked_callbacks, others_have, why_failed, why_not
from .recorder import Graph, Recorder
from .watch import watch

__all__ = ["CompiledStep"]


class CompiledStep(Callback):
    """Run forward, loss, backward and the optimizer's step of a batch as one graph, which is faster for small models.

    On CUDA the ordinary step is captured as a CUDA graph, with the fused kernels of the optimizer. The results are the
    same bits as without it, if the optimizer was made with `fused=True`. On a CPU the step is compiled by
    TorchInductor, which needs a C++ compiler and takes some seconds for each shape of a batch. Its results differ from
    those of the ordinary step by rounding. A run that is resumed continues with the same bits on both.

    The first two batches of each shape run as usual. If the step cannot be one graph, all of them do, and a line says
    why: a value is read from a tensor (`.item()`, `if loss > 3`), `_make_step` is your own, several processes
    train, the optimizer or a hook is not known to be safe. Validation always runs as usual.

    A graph repeats the work on tensors, and not the Python around it. CompiledStep looks for what would go wrong: a
    module that counts its calls, random numbers from Python, a `forward` that reads `state.global_step`. It records
    the step again when something changes that it reads, such as the probability of a dropout, or a global variable.
    Learning rates may change at every step.

    A callback with `on_after_backward` or `on_before_step` that changes nothing but tensors, in place, can be part
    of the graph. Mark it by a class attribute: `capturable = True`. Metrics with this attribute are updated inside a
    CUDA graph, beside the backward pass. They may read only output, target and their own tensors. After the step
    `parameter.grad` is None, and `state.output` and `state.loss` are detached.

    Examples:
        >>> Runner(model, optimizer, criterion, callbacks=[CompiledStep()]).fit(loader, epochs=5)
    """

    def __init__(self) -> None:
        self._optimizer: GraphedOptimizer | None = None
        self._graphs: dict[Any, Graph] = {}
        self._progress = Progress()

    def on_begin(self, state: RunnerState) -> None:
        """Put the graph in the place of the step."""
        self._state, self._eager = state, state.make_step
        self._progress = Progress()
        self._reason: str | None = None
        self._forms: set[Any] = set()
        self._unready: set[str] = set()
        self._said: set[str] = set()
        # Nobody else changes the model or the optimizer in a way that is not noticed at once.
        self._others_are_in_batches = others_have(state, ("on_batch_begin", "on_batch_end", "on_checkpoint"))
        self._others_are_in_epochs = others_have(state, HOOKS)
        state.make_step = self._run_batch

    def on_loader_begin(self, state: RunnerState) -> None:
        """Look at everything at the first batch, because other callbacks may change something until then."""
        if state.is_train:
            self._is_new_epoch = True
            self._others_are_in_batches = self._others_are_in_batches or state.make_step != self._run_batch

    def on_end(self, state: RunnerState) -> None:
        """Drop the graphs, and leave the optimizer as it was."""
        self._drop()

    def state_dict(self) -> dict[str, Any]:
        """Return which batches have run as usual and why, so that a resumed run uses graphs where this one would."""
        return dataclasses.asdict(self._progress)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them. On CUDA each process needs usual steps first, and they have the same bits as the graph."""
        if not cuda.captures(self._state.device):
            self._progress = Progress(**{**state_dict, "seen": dict(state_dict["seen"])})

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy starts with. It has graphs of its own in a run of its own."""
        return vars(CompiledStep())

    def _run_batch(self) -> None:
        """Make the step of a batch, by a graph if there is one."""
        if self._state.is_train and self._reason is None:
            if self._optimizer is None:
                self._begin()
            else:
                self._follow_changes()
        if not self._state.is_train or self._reason is not None:
            self._eager()
            return
        graph = self._graph()
        if graph is not None:
            self._recorder.replay(graph, self._tensors)
            self._progress.replays += 1
        elif self._reason is None:
            self._warm_up()
        else:
            self._eager()

    def _begin(self) -> None:
        """Look whether the step can be a graph, and prepare it."""
        self._is_new_epoch, before = False, self._progress.digest
        if (reason := why_not(self._state, self._eager)) is not None:
            self._give_up(reason)
            return
        self._prepare()
        if before and before != self._progress.digest:
            self._count_change("a value that is another one since the run was resumed")

    def _prepare(self) -> None:
        """Prepare the optimizer, and note what the graphs depend on. If that is new, batches run as usual first."""
        state = self._state
        self._graphs = {}
        self._optimizer = GraphedOptimizer(state.optimizer, state.device)
        if state.grad_scaler.is_enabled() and not self._optimizer.is_fused:
            self._give_up("in fp16 only the fused kernels of SGD, Adam and AdamW do not wait for the device")
            return
        step: Any = self._eager  # a method of the Runner
        parts = {"model": state.model, "criterion": state.criterion, "runner": step.__self__}
        self._parts = {**parts, **marked_callbacks(state)}
        self._guard = Guard(self._parts, state.optimizer)
        self._recorder = Recorder(state, self._eager, self._optimizer, self._parts)
        progress, digest = self._progress, self._guard.digest()
        if progress.digest != digest or cuda.captures(state.device):
            progress.digest, progress.seen, progress.gave_up, self._forms = digest, {}, None, set()
        if progress.gave_up is not None:
            self._give_up(progress.gave_up)

    def _follow_changes(self) -> None:
        """Prepare again if something has changed that the graphs depend on."""
        state, guard = self._state, self._guard
        assert self._optimizer is not None
        is_new_epoch, self._is_new_epoch = self._is_new_epoch, False
        if not self._optimizer.is_current(state.optimizer):
            self._record_again("the state of the optimizer was replaced")
        elif state.criterion is not self._parts["criterion"] or state.model is not self._parts["model"]:
            self._record_again("the model or the criterion was replaced")
        elif not guard.holds():
            self._record_again(guard.changed())
        elif (is_new_epoch or self._others_are_in_batches) and not guard.is_in_place():
            self._record_again("modules, weights, buffers or the state of the optimizer were replaced")
        elif is_new_epoch and self._others_are_in_epochs and not guard.is_unchanged():
            self._record_again("modules or other parts of the step were replaced")

    def _graph(self) -> Graph | None:
        """Return the graph for this batch, None if its step has to run as usual."""
        state = self._state
        self._tensors: list[Tensor] = []
        try:
            form: Any = state.batch_size, flatten((state.input, state.target), self._tensors)
        except TypeError as error:
            self._give_up(f"a batch contains a {error}")
            return None
        ids = [id(tensor) for tensor in self._tensors]
        if len(set(ids)) < len(ids):  # the target is the input, say
            form = form, tuple(map(ids.index, ids))
        self._form = form
        place = self._place() if state.accumulate_steps > 1 else ()
        if place is None:
            return None
        graph = self._graphs.get((form, place))
        if graph is None and self._is_due(form, place):
            graph = self._record(form, place)
        return graph

    def _record(self, form: Any, place: Any) -> Graph | None:
        """Return a new graph for a batch, None if that failed."""
        name, begin = repr((form, place)), time.perf_counter()
        try:
            graph = self._recorder.record(self._tensors, *place[:2])
        except StateIsNewError:
            if name in self._unready:
                self._give_up("the optimizer creates a part of its state at each step")
            self._unready.add(name)
            return None
        except Exception as error:
            self._give_up(why_failed(error), lasts=not self._progress.had_graph(name))
            return None
        if not self._graphs:  # A callback may have added something since the first batch.
            self._guard = Guard(self._parts, self._state.optimizer)
            self._guard.note_objects()
        self._graphs[form, place] = graph
        self._progress.note_graph(name)
        self._unready.discard(name)
        how = "captured as a CUDA graph" if cuda.captures(self._state.device) else "compiled"
        self._say(f"the step for {shown(form)} was {how}", f" in {time.perf_counter() - begin:.2g} s")
        return graph

    def _place(self) -> tuple[Any, ...] | None:
        """Return the place of a batch in its accumulation window, and its weights there. None if no graph fits it."""
        state = self._state
        opens = not state.loop.has_gradients
        # Weights are divided up before the forward pass, so it has to be known that this does not set another one.
        if self._form not in self._forms and repr(self._form) not in self._progress.seen:
            return None
        self._forms.add(self._form)
        if not opens and not self._recorder.can_continue():
            return None
        weights = state.loop.weigh()
        if any(isinstance(weight, Tensor) for weight in weights):
            self._give_up("the weight of a batch is a tensor, and accumulate_steps is above 1")
            return None
        return opens, state.is_optimizer_step, *weights

    def _is_due(self, form: Any, place: Any) -> bool:
        """Count a batch of a shape, and return whether a graph is recorded for it."""
        name, progress = repr((form, place)), self._progress
        if progress.warms_up(name):
            return False
        if progress.may_record(name):
            return True
        self._say(
            f"there are {progress.graphs} graphs, and the shapes of batches keep changing, so that the other steps "
            "run as usual. Pad the batches to few shapes"
        )
        return False

    def _warm_up(self) -> None:
        """Run the step as usual, and look for what a graph would freeze."""
        state, weight = self._state, self._state.weight
        assert self._optimizer is not None
        reason = watch(self._recorder.run_eagerly, state, self._parts, self._tensors)
        if state.accumulate_steps > 1 and state.weight is not weight:
            reason = "forward sets the weight of a batch, and accumulate_steps is above 1"
        elif state.accumulate_steps > 1 and not self._progress.is_full:
            self._progress.seen[repr(self._form)] = 1
        self._optimizer.move_counters()
        try:
            flatten([state.output, state.losses], [])
        except TypeError as error:
            reason = f"forward returns a {error}"
        if reason is not None:
            self._give_up(reason)

    def _record_again(self, what: str) -> None:
        """Drop the graphs because something has changed that they depend on."""
        self._count_change(what)
        if self._reason is None:
            self._prepare()

    def _count_change(self, what: str) -> None:
        """Count a change, and give up if there are many."""
        if not self._progress.count_change():
            is_momentum = what.startswith(("momentum of", "betas of"))
            advice = ". With OneCycleLR, pass cycle_momentum=False" if is_momentum else ""
            self._give_up(f"what it depends on changes too often: {what}{advice}")

    def _give_up(self, reason: str, *, lasts: bool = True) -> None:
        """Run the step as usual from now on, and say why.

        Args:
            reason: why.
            lasts: whether a resumed run should do so too, if this one has used graphs. It would not find the reason.
        """
        self._reason = reason
        if lasts and self._progress.graphs:
            self._progress.gave_up = reason
        self._say(f"the step runs as usual, because {reason}")
        self._drop()

    def _drop(self) -> None:
        """Drop the graphs, and leave the optimizer as it was."""
        if self._optimizer is not None:
            self._optimizer.put_back()
        self._optimizer, self._graphs = None, {}

    def _say(self, text: str, more: str = "") -> None:
        """Print a line, unless it was printed before."""
        if text not in self._said:
            self._said.add(text)
            print_line(self._state, f"CompiledStep: {text}{more}")
