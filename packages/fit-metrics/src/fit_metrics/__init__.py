"""Metrics, exact and on the device, for fit_core.Runner and for loops of your own."""

from .accuracy import Accuracy
from .base import SumMetric

__all__ = ["Accuracy", "SumMetric"]
