"""Helpers of the tests of checkpoints."""

import zipfile

from fit_core import Callback


class Values(Callback):
    """Puts given values into the logs, one per epoch."""

    def __init__(self, *values):
        self.values = values

    def on_epoch_end(self, state):
        state.logs["value"] = self.values[state.epoch]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def flip(path, bit=0):
    """Flip one bit in the middle of the largest tensor."""
    with zipfile.ZipFile(path) as records:
        tensors = [record for record in records.infolist() if "/data/" in record.filename]
        largest = max(tensors, key=lambda record: record.file_size)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as records:
        data = records.read(largest)
    at = content.index(data) + len(data) // 2
    content[at] ^= 1 << bit
    path.write_bytes(content)
