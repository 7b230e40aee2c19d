"""Write a checkpoint under all of its names, so that one rename commits it."""

from __future__ import annotations

import contextlib
import os
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from .content import size_of
from .files import CheckpointError, add_name, cannot_save, explained, sync_folder, write
from .folder import clear_unused, make_folder
from .peers import Peers
from .shard_files import write_shards

__all__ = ["commit", "commit_shards"]


def commit(folder: Path, content: dict[str, Any], names: list[str], dropped: list[str]) -> None:
    """Write a checkpoint.

    Args:
        folder: where.
        content: the state of the run.
        names: the names of the file besides `last.pt`.
        dropped: files to remove afterwards.
    """
    part, last = folder / ".last.pt.part", folder / "last.pt"
    with explained(content, part):
        write(content, part)
        for name in names:
            add_name(part, folder / name)
        if last.exists():
            add_name(last, folder / "before-last.pt")
        os.replace(part, last)
        sync_folder(folder)
    for name in dropped:
        with contextlib.suppress(OSError):  # A leftover file does not matter.
            (folder / name).unlink(missing_ok=True)


def commit_shards(
    folder: Path,
    content: dict[str, Any],
    shards: dict[str, Tensor],
    names: list[str],
    dropped: list[str],
    peers: Peers,
    rank: int,
) -> None:
    """Write the shards of each process to a new folder, to which the file refers, so that its name commits both.

    Args:
        folder: where.
        content: the state of the run, without its shards.
        shards: those of this process.
        names: the names of the file besides `last.pt`.
        dropped: files to remove afterwards.
        peers: the processes, all of which call this function.
        rank: the number of this one.
    """
    try:
        new = folder / peers.on_rank_zero(lambda: make_folder(folder))
        files = peers.gather(peers.together(lambda: write_shards(shards, new, peers.group, rank)))
    except OSError as error:
        if rank == 0:
            clear_unused(folder)
        raise cannot_save(folder, error, size_of(shards)) from error

    def commit_all() -> None:
        merged = dict(chain.from_iterable(map(dict.items, files)))
        missing = [name for name in merged if not (new / name).exists()]
        if missing:
            raise CheckpointError(
                f"cannot save a checkpoint in {folder}: expected the shards of all processes there, but "
                f"{len(missing)} of {len(merged)} files are missing. Pass a folder that every machine can see"
            )
        sync_folder(new)
        content["shards"] = {"folder": new.name, "files": merged}
        commit(folder, content, names, dropped)
        clear_unused(folder)

    peers.on_rank_zero(commit_all)
