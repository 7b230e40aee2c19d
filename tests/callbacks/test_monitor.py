"""A callback watches the right name in the right direction, or is refused before the first step."""

import warnings

import pytest
import torchmetrics
from fit_callbacks import CheckpointSaver, ConsoleLogger, EarlyStopping, ReduceLROnPlateau, TensorBoard
from scene import Snapshots, Watch, accuracy, batches, load, make
from torch import nn

KINDS = [EarlyStopping, ReduceLROnPlateau, lambda *arguments: CheckpointSaver("runs", *arguments)]


def refusal(callback, tmp_path, monkeypatch, metrics=(), **fit):
    """Return the message of a run that is refused before its first step."""
    monkeypatch.chdir(tmp_path)
    steps = Watch("on_batch_end", lambda state: 1)
    with pytest.raises(ValueError, match=r"monitor|better") as caught:
        make(steps, callback, metrics=metrics).fit(batches(), **fit)
    assert steps.seen == []
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("monitor", "mode", "suggestion"),
    [
        ("val/los", "auto", "Did you mean 'val/loss'?"),
        ("val_loss", "auto", "Did you mean 'val/loss'?"),
        ("val_loss", "min", "Did you mean 'val/loss'?"),
        ("val_accuracy", "auto", "Did you mean 'val/accuracy'?"),
        ("Accuracy", "auto", "Did you mean 'val/accuracy'?"),
        ("f1", "auto", "If it comes from a callback or is one of several losses, pass mode='min' or mode='max'"),
    ],
)
def test_a_wrong_monitor_is_refused_before_the_first_step(kind, monitor, mode, suggestion, tmp_path, monkeypatch):
    said = refusal(kind(monitor, mode), tmp_path, monkeypatch, [accuracy], val_loader=batches())
    assert said.startswith(f"monitor {monitor!r} not found. ")
    assert "There are: train/loss, train/accuracy, val/loss, val/accuracy" in said
    assert suggestion in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_metric_whose_direction_nobody_knows_is_refused_before_the_first_step(kind, tmp_path, monkeypatch):
    said = refusal(kind("train/accuracy"), tmp_path, monkeypatch, [accuracy])
    assert said.startswith("it is unknown whether a higher or a lower train/accuracy is better. Pass mode='max'")


@pytest.mark.parametrize("kind", KINDS)
def test_a_mode_that_looks_for_the_worst_epoch_warns(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="mode='max' looks for the worst epoch: a lower train/loss is better. Leave"):
        make(kind("train/loss", "max")).fit(batches())
    with pytest.warns(UserWarning, match="mode='min' looks for the worst epoch: a higher train/share@1 is better"):
        make(kind("train/share@1", "min"), metrics=[Shares()]).fit(batches())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(kind("train/accuracy", "min"), metrics=[accuracy]).fit(batches())
        make(kind("train/share@1", "max"), metrics=[Shares()]).fit(batches())


class Shares:
    """A metric of two values, as Accuracy(1, 5) is."""

    higher_is_better = True
    names = ("share@1", "share@5")

    def reset(self):
        pass

    def update(self, output, target):
        pass

    def compute(self):
        return {"share@1": 0.5, "share@5": 0.75}


@pytest.mark.parametrize(
    ("metric", "name", "sign"),
    [
        (None, "loss", 1),
        (None, "val/loss", 1),
        (torchmetrics.classification.MulticlassAccuracy(3), "val/MulticlassAccuracy", -1),
        (torchmetrics.MeanSquaredError(), "train/MeanSquaredError", 1),
        (Shares(), "val/share@5", -1),
        (
            torchmetrics.MetricCollection({"f1": torchmetrics.classification.MulticlassF1Score(3)}),
            "val/f1",
            -1,
        ),
    ],
)
def test_a_metric_says_which_way_is_better(metric, name, sign):
    stopper = EarlyStopping(name)
    runner = make(stopper, metrics=[metric] if metric else [])
    runner.state.val_loader = []
    stopper.on_begin(runner.state)
    assert stopper.monitor.sign == sign


def test_a_monitor_given_with_its_mode_may_come_from_anywhere():
    losses = EarlyStopping("train/half", "min", patience=1)

    def parts(output, target):
        loss = nn.functional.cross_entropy(output, target)
        return {"loss": loss, "half": loss / 2}

    runner = make(losses)
    runner.state.criterion = parts
    history = runner.fit(batches(), 2)
    assert losses.monitor.best.value == min(row["train/half"] for row in history)


def test_an_improving_accuracy_does_not_stop_the_run():
    values = iter([0.1, 0.2, 0.3, 0.4])

    class Rising:
        name, higher_is_better = "rising", True

        def reset(self):
            pass

        def update(self, output, target):
            pass

        def compute(self):
            return next(values)

    assert len(make(EarlyStopping("train/rising", patience=1), metrics=[Rising()]).fit(batches(), 4)) == 4


def test_an_epoch_without_training_results_does_not_count(tmp_path):
    make(snapshots := Snapshots()).fit(batches(), 2)
    after_last_batch = load(snapshots.saved[4])  # of five
    callbacks = [
        CheckpointSaver(tmp_path),
        EarlyStopping("loss", patience=2),
        ReduceLROnPlateau("loss"),
        TensorBoard(tmp_path),
    ]
    runner = make(*callbacks, ConsoleLogger())
    runner.state.load_state_dict({**after_last_batch, "ranks": after_last_batch["ranks"] * 2})  # of two processes
    with pytest.warns(UserWarning, match="processes 2 -> 1"):
        history = runner.fit(batches(), 3)
    assert ["train/loss" in row for row in history] == [False, True, True]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("monitor", [b"loss", None, 0.5])
def test_a_monitor_that_is_not_a_name(kind, monitor):
    with pytest.raises(TypeError, match=r'expected monitor to be a name in the logs, such as "val/loss", got'):
        kind(monitor)
