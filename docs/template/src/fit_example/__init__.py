"""A callback and a metric for fit: the beginning of a package of your own."""

from .calibration import CalibrationError
from .milestones import Milestones

__all__ = ["CalibrationError", "Milestones"]
