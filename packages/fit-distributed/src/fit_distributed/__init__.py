"""Train with fit_core.Runner on several processes and machines."""

from .environment import barrier, device, is_main, local_rank, rank, world_size
from .launch import LaunchError, launch
from .parallel import parallel
from .shard import ShardSampler, shard

__all__ = [
    "LaunchError",
    "ShardSampler",
    "barrier",
    "device",
    "is_main",
    "launch",
    "local_rank",
    "parallel",
    "rank",
    "shard",
    "world_size",
]
