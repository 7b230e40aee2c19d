"""Run the training step of a batch as one graph."""

from .step import CompiledStep

__all__ = ["CompiledStep"]
