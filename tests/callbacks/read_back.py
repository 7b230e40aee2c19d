"""Read what TensorBoard has written."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


def curves(folder):
    read = events(folder)
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def close(points):
    return pytest.approx(points, rel=1e-6)
