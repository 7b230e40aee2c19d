"""The values of a loader that runs, as the bar and TensorBoard show them, have the names of its results."""

import pytest
from fit_callbacks import Report, TensorBoard
from fit_callbacks.running import running_metrics
from read_back import curves
from scene import Snapshots, Watch, batches, load, make


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


def test_the_running_loss_of_a_run_on_fewer_processes_is_that_of_its_own_batches(tmp_path):
    """The meters restart in the middle of the epoch, with more samples per batch."""
    reported = {}

    def callbacks():
        report = Report(lambda values, step: reported.setdefault(step, values), every=3)
        return [TensorBoard(tmp_path, every=3), report]

    make(*callbacks(), snapshots := Snapshots()).fit(batches([8] * 12))
    saved = load(snapshots.saved[3])  # of a process of two, after 4 batches of 12
    losses = Watch("on_batch_end", lambda state: state.loss.item())
    runner = make(*callbacks(), losses)
    runner.state.load_state_dict({**saved, "ranks": saved["ranks"] * 2})
    reported.clear()
    with pytest.warns(UserWarning, match="processes 2 -> 1"):
        runner.fit(batches([32] * 12))
    expected = {6: sum(losses.seen[:2]) / 2, 9: sum(losses.seen[2:5]) / 3}
    assert {step: reported[step]["train_step/loss"] for step in expected} == pytest.approx(expected)
    shown = dict(curves(tmp_path)["train_step/loss"])
    assert {step: shown[step] for step in expected} == pytest.approx(expected, rel=1e-6)
