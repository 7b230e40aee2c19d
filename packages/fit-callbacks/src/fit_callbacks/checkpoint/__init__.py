"""Save checkpoints, and resume a run that was killed at any moment, bit for bit."""

from .files import CheckpointError, read
from .saver import CheckpointSaver

__all__ = ["CheckpointError", "CheckpointSaver", "read"]
