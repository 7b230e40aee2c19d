"""The training loop of fit: `Runner`, its `RunnerState`, and the base class of callbacks."""

from .callback import HOOKS, Callback
from .checks import at_least_one
from .history import History
from .loaders import samplers
from .metric import Mean, Metric, metric_name, named_values
from .models import unwrap
from .processes import close_group, has_process_group, host_group
from .runner import Runner
from .state import RunnerState

__all__ = [
    "HOOKS",
    "Callback",
    "History",
    "Mean",
    "Metric",
    "Runner",
    "RunnerState",
    "at_least_one",
    "close_group",
    "has_process_group",
    "host_group",
    "metric_name",
    "named_values",
    "samplers",
    "unwrap",
]
