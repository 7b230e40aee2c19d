"""List the checkpoints of a folder with epoch, step, monitored value, size, and whether they are damaged."""

from __future__ import annotations

import sys
from pathlib import Path

from ..numbers import file_size
from .files import CheckpointError, read_file
from .folder import checkpoints
from .shard_files import shards_size


def describe(path: Path) -> str:
    """Return a line about a checkpoint."""
    size = file_size(path.stat().st_size)
    try:
        content = read_file(path)
        size = file_size(path.stat().st_size + shards_size(content))
    except CheckpointError as error:
        return f"{path.name:<16} {'':>6} {'':>9} {'':<24} {size:>10}  DAMAGED: {error}"
    monitor = content.get("monitor", {})
    value = "" if monitor.get("value") is None else f"{monitor['name']} {monitor['value']:.6g}"
    return f"{path.name:<16} {content['epoch']:>6} {content['global_step']:>9} {value:<24} {size:>10}  whole"


def main(arguments: list[str]) -> int:
    """Print the table. Return 1 if a checkpoint is damaged or there is none, and 2 if the folder is missing."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        sys.stderr.write("usage: python -m fit_callbacks.checkpoint FOLDER\n")
        return 2
    paths = checkpoints(Path(arguments[0]))
    lines = [describe(path) for path in paths]
    header = f"{'file':<16} {'epochs':>6} {'steps':>9} {'monitored':<24} {'size':>10}"
    sys.stdout.write("\n".join([header, *lines] if lines else [f"no checkpoint in {arguments[0]}"]) + "\n")
    return 0 if lines and not any("DAMAGED" in line for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
