"""Callbacks that let one see, steer and record a run of fit_core.Runner."""

from .console import ConsoleLogger
from .plot import plot_history

__all__ = ["ConsoleLogger", "plot_history"]
