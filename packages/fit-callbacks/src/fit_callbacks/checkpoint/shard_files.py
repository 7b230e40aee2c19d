"""Write the shards of a model with torch.distributed.checkpoint, find damage in them, and read them."""

from __future__ import annotations

import pickle
import warnings
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["checksum_of", "damage_of_shards", "read_shards", "shards_size", "write_shards"]


def write_shards(shards: Mapping[str, Tensor], folder: Path, group: Any, rank: int) -> dict[str, list[int]]:
    """Write the shards of this process while the others write theirs. Return size and checksum of its files."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = FileSystemWriter(str(folder))  # forces its files to the disk
    try:
        save(dict(shards), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        number, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"rank {number}: {cause}") from error
    own = [*folder.glob(f"__{rank}_*"), *([folder / ".metadata"] if rank == 0 else [])]
    return {path.name: [path.stat().st_size, checksum_of(path)] for path in own}


def damage_of_shards(path: Path, content: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the shards of a checkpoint, or None if all are whole or there are none."""
    if "shards" not in content:
        return None
    folder = path.parent / content["shards"]["folder"]

    def damage(name: str, size: int, checksum: int) -> str | None:
        file = folder / name
        if not file.exists():
            return f"{file} is missing. It belongs to the checkpoint, so copy the folder with it"
        if file.stat().st_size != size:
            return f"{file} is not complete"
        return None if checksum_of(file) == checksum else f"the checksum of {file} is wrong"

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda entry: damage(entry[0], *entry[1]), content["shards"]["files"].items()))
    problem = next(filter(None, found), None)
    if problem is None:
        try:
            _check_description(folder)
        except Exception as error:  # It can fail in many ways.
            return f"{folder} contains more than tensors ({error})"
    return problem


def shards_size(content: Mapping[str, Any]) -> int:
    """Return the bytes of the files of shards."""
    return sum(size for size, _ in content["shards"]["files"].values()) if "shards" in content else 0


def read_shards(targets: dict[str, Tensor], folder: Path) -> None:
    """Fill tensors, by their names in a folder of shards. Of a sharded one, each process reads its part.

    Raises:
        pickle.UnpicklingError: the folder contains more than tensors.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    _check_description(folder)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # Each process reads by itself.
        load(targets, storage_reader=FileSystemReader(str(folder)), no_dist=True)


def _check_description(folder: Path) -> None:
    with (folder / ".metadata").open("rb") as file:
        _Description(file).load()


class _Description(pickle.Unpickler):
    """Read the pickled description of shards, and refuse any other object, before torch executes what is in it."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            "torch.distributed.checkpoint.metadata": (
                "ChunkStorageMetadata",
                "Metadata",
                "MetadataIndex",
                "StorageMeta",
                "TensorProperties",
                "TensorStorageMetadata",
                "_MEM_FORMAT_ENCODING",
            ),
            "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
            "torch.serialization": ("_get_layout",),
            "torch": ("Size",),
            "pathlib": ("PosixPath", "WindowsPath", "Path", "PurePosixPath"),
            "pathlib._local": ("PosixPath", "WindowsPath"),
        }
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if name not in allowed.get(module, ()) and not is_dtype:
            raise pickle.UnpicklingError(f"it contains more than a description of tensors: {module}.{name}")
        return super().find_class(module, name)


def checksum_of(path: Path) -> int:
    """Return the CRC-32 of a file."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum
