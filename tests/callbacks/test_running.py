"""The values of a loader that runs, as the bar and TensorBoard show them, have the names of its results."""

import pytest
from fit_callbacks.running import running_metrics
from scene import Watch, batches, make


class Parts:
    """A metric of several values, with the names that other metrics of its kind have too."""

    def __init__(self, name, **parts):
        self.name = name
        self.parts = parts

    def reset(self):
        pass

    def update(self, output, target):
        pass

    def compute(self):
        return self.parts


def test_values_of_one_name_are_told_apart_as_in_the_results():
    running = Watch("on_batch_end", running_metrics)
    metrics = [Parts("acc", raw=0.5, max=0.75), Parts("f1", raw=0.25, loss=2.0, only=1.0)]
    row = make(running, metrics=metrics).fit(batches())[0]
    expected = {"acc/raw": 0.5, "max": 0.75, "f1/raw": 0.25, "f1/loss": 2.0, "only": 1.0}
    assert running.seen == [expected] * 5
    results = {name.removeprefix("train/"): value for name, value in row.items()}
    assert {name: results[name] for name in expected} == pytest.approx(expected)
