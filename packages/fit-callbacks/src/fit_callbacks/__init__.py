"""Provide callbacks that watch, log, save and change a run of fit_core.Runner."""

from .checkpoint import CheckpointError, CheckpointSaver
from .clipping import AdaptiveGradientClipping, GradientClipping
from .compiled import CompiledStep
from .confusion import ConfusionMatrix
from .console import ConsoleLogger
from .dropout import ScheduledDropout
from .early_stopping import EarlyStopping
from .ema import ModelEma
from .file_logger import FileLogger
from .freeze import Freeze
from .lr_finder import LRFinder
from .mixing import Cutmix, Mixup, SegmCutmix
from .non_finite import StopOnNonFinite
from .optimizers import Optimizers
from .overfit import BatchOverfit
from .phases import Phase, PhasesScheduler
from .plot import plot_history
from .profiler import Profiler
from .ranks import rank_zero_only
from .report import Report
from .reset_optimizer import ResetOptimizer
from .schedule import LRScheduler, ReduceLROnPlateau
from .summary import summary
from .tensorboard import TensorBoard
from .timer import Timer

__all__ = [
    "AdaptiveGradientClipping",
    "BatchOverfit",
    "CheckpointError",
    "CheckpointSaver",
    "CompiledStep",
    "ConfusionMatrix",
    "ConsoleLogger",
    "Cutmix",
    "EarlyStopping",
    "FileLogger",
    "Freeze",
    "GradientClipping",
    "LRFinder",
    "LRScheduler",
    "Mixup",
    "ModelEma",
    "Optimizers",
    "Phase",
    "PhasesScheduler",
    "Profiler",
    "ReduceLROnPlateau",
    "Report",
    "ResetOptimizer",
    "ScheduledDropout",
    "SegmCutmix",
    "StopOnNonFinite",
    "TensorBoard",
    "Timer",
    "plot_history",
    "rank_zero_only",
    "summary",
]
