"""Trace a step into one graph of operations, and compile it for the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from .undo import Undo

__all__ = ["TracedGraph"]

AROUND = ("aliased_out_indices", "mutated_inp_runtime_indices", "tokens", "is_rng_op_functionalized")
"""Work that AOTAutograd would have to do before or after the generated code, by its names for it."""


class TracedGraph:
    """The operations of a step, compiled by TorchInductor as one function.

    The step is run once while it is traced. Everything it has changed is put back afterwards.

    Args:
        inputs: the tensors of a batch.
        step: given them, makes a step and returns its outputs.
        changed: the tensors that a step is known to change in place.

    Raises:
        Exception: the step cannot be traced, because it reads a number from a tensor, say, or not be compiled.
    """

    def __init__(
        self, inputs: list[Tensor], step: Callable[[list[Tensor]], list[Tensor]], changed: Iterable[Tensor]
    ) -> None:
        random = torch.get_rng_state()
        with Undo(changed):
            try:
                traced = make_fx(lambda *tensors: step(list(tensors)), tracing_mode="real")(*inputs)
            finally:
                torch.set_rng_state(random)
        graph, self._held = _lift(traced)
        self._compiled = _compile(graph, [*self._held, *inputs])
        self._detach = any(tensor.requires_grad for tensor in inputs)

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        """Run the step on other numbers."""
        if self._detach:
            inputs = [tensor.detach() for tensor in inputs]
        return self._compiled([*self._held, *inputs])


def _lift(traced: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """Make the tensors that a graph holds (weights, buffers, optimizer states) its first inputs, and return them."""
    graph = traced.graph
    for node in reversed(list(graph.nodes)):
        if "record_function" in str(node.target):  # marks for the profiler around the optimizer's step
            graph.erase_node(node)
    graph.eliminate_dead_code()
    first = next(iter(graph.nodes))
    inputs: dict[int, tuple[fx.Node, Tensor]] = {}
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        tensor = getattr(traced, node.target)
        if id(tensor) not in inputs:
            with graph.inserting_before(first):
                inputs[id(tensor)] = graph.placeholder(f"held_{len(inputs)}"), tensor.data
        node.replace_all_uses_with(inputs[id(tensor)][0])
        graph.erase_node(node)
    return fx.GraphModule({}, graph), [tensor for _, tensor in inputs.values()]


def _compile(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[[list[Tensor]], list[Tensor]]:
    """Compile a graph that changes its inputs in place.

    `compile_fx` is private. It takes a third less time for a small step than the public `torch.compile`, which
    checks its inputs at each call. CompiledStep compares their sizes itself. What `compile_fx` returns does little
    more than to call the generated code, but that takes a fifth of the time of a small step. So the function in that
    code (`current_callable`) is called directly, unless something has to be done before or after it. Convolutions
    keep the memory format of the model, because another one costs a small model more than it gains. Tried with torch
    2.13. If a later torch does not have these functions, the step runs as usual.
    """
    from torch._guards import TracingContext  # these take a second
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    direct: Callable[[list[Tensor]], Any] | None = None

    def compile_inner(module: Any, examples: Any, **options: Any) -> Any:
        nonlocal direct
        code: Any = compile_fx_inner(module, examples, **options)
        about: Any = getattr(TracingContext.try_get(), "fw_metadata", None)
        if len(examples) == len(inputs) and not any(getattr(about, name, True) for name in AROUND):
            direct = getattr(code, "current_callable", None) or code
        return code

    patches = {"size_asserts": False, "layout_optimization": False}
    with torch.no_grad():
        whole: Any = compile_fx(graph, inputs, inner_compile=compile_inner, config_patches=patches)
    if direct is not None:
        return direct

    def run(tensors: list[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(whole(*tensors))

    return run
