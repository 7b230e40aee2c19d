"""The training loop of fit: :class:`Runner`, its :class:`RunnerState`, and what hangs on them."""

from .callback import HOOKS, Callback
from .metric import Mean, Metric
from .runner import Runner
from .state import History, RunnerState

__all__ = ["HOOKS", "Callback", "History", "Mean", "Metric", "Runner", "RunnerState"]
