"""Check that your own callbacks and metrics keep the protocol: `check_callback(MyCallback())`."""

from .callbacks import CALLBACK_CHECKS, CallbackCase, check_callback
from .metrics import METRIC_CHECKS, MetricCase, check_metric
from .processes import check_measures, check_ranks, in_two_processes, measure_on_rank, train_on_rank

__all__ = [
    "CALLBACK_CHECKS",
    "METRIC_CHECKS",
    "CallbackCase",
    "MetricCase",
    "check_callback",
    "check_measures",
    "check_metric",
    "check_ranks",
    "in_two_processes",
    "measure_on_rank",
    "train_on_rank",
]
