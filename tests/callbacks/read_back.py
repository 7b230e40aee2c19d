"""Read what TensorBoard has written."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

# Event files are read by name: second, host, process, number in the process. Let the numbers sort as strings.
event_file_writer._global_uid = event_file_writer.AtomicCounter(1_000_000)


def events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


def curves(folder):
    read = events(folder)
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def close(points):
    return pytest.approx(points, rel=1e-6)
