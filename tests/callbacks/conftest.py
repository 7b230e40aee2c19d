"""Run the graphs of CompiledStep operation by operation, because compiling each takes seconds."""

import pytest


@pytest.fixture(autouse=True)
def interpreted(request, monkeypatch):
    """Replace the compiler, except in tests marked with ``compiler``."""
    if "compiler" not in request.keywords:
        monkeypatch.setattr("fit_callbacks.compiled.traced._compile", lambda graph, inputs: graph)
