"""Checkpoints: a run that is killed at any moment goes on with the same bits."""

from .files import CheckpointError, read
from .saver import CheckpointSaver

__all__ = ["CheckpointError", "CheckpointSaver", "read"]
