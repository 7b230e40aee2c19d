"""Run the graphs of CompiledStep operation by operation, because compiling each takes seconds."""

import pytest
import torch


@pytest.fixture(autouse=True)
def interpreted(request, monkeypatch):
    """Replace the compiler, except in tests marked with `compiler`."""
    if "compiler" not in request.keywords:
        monkeypatch.setattr("fit_callbacks.compiled.traced._compile", interpret)


def interpret(graph, inputs):
    """Return a function that runs a graph as it is."""

    @torch.no_grad()
    def run(tensors):
        return graph(*tensors)

    return run
