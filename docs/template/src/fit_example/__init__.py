"""A callback and a metric for fit: the start of a package of your own."""

from .calibration import CalibrationError
from .milestones import Milestones

__all__ = ["CalibrationError", "Milestones"]
