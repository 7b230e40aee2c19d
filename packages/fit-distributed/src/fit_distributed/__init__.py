"""From one process to many machines by one call, for fit_core.Runner."""

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
