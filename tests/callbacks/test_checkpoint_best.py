"""The best checkpoints are those of the best epochs, also after a resume."""

import pytest
from checkpoints import Values, names
from fit_callbacks import CheckpointSaver, ModelEma
from fit_callbacks.checkpoint import read
from fit_core import Callback
from scene import accuracy, batches, make, network


@pytest.mark.parametrize("first", [True, False])
def test_with_an_average_best_is_the_epoch_in_which_the_average_was(tmp_path, first):
    saver, ema = CheckpointSaver(tmp_path, "val/loss"), ModelEma(0.7)
    history = make(*((saver, ema) if first else (ema, saver))).fit(batches(), epochs=6, val_loader=batches(seed=1))
    best = read(tmp_path / "best.pt")
    average = network(seed=9)
    average.load_state_dict(best["callbacks"]["ModelEma"]["model"])
    assert make(model=average).evaluate(batches(seed=1))["val/loss"] == min(row["val/loss"] for row in history)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_are_kept_by_name(tmp_path, mode):
    values = [5.0, 3.0, float("nan"), 4.0, 3.0, 1.0, float("inf"), 2.0]
    sign = 1 if mode == "min" else -1
    kept = []

    class Look(Callback):
        def on_epoch_begin(self, state):
            kept.append([name for name in names(tmp_path) if name.startswith("epoch")] if state.epoch else [])

    saver = CheckpointSaver(tmp_path, "value", mode, keep=3)
    make(Values(*(sign * value for value in values)), saver, Look()).fit(batches((4,)), epochs=8)
    one, two, four, five = ([f"epoch-000{n}.pt" for n in part] for part in ((1,), (1, 2), (1, 2, 4), (2, 4, 5)))
    assert kept == [[], one, two, two, four, five, ["epoch-0002.pt", "epoch-0005.pt", "epoch-0006.pt"], kept[6]]
    assert [name for name in names(tmp_path) if name.startswith("epoch")] == [f"epoch-000{n}.pt" for n in (2, 6, 8)]
    assert read(tmp_path / "best.pt")["epoch"] == 6
    assert all(read(tmp_path / f"epoch-000{n}.pt")["epoch"] == n for n in (2, 6, 8))


def test_of_equal_values_the_first_is_best(tmp_path):
    make(Values(2.0, 1.0, 1.0), CheckpointSaver(tmp_path, "value", "min")).fit(batches((4,)), epochs=3)
    assert read(tmp_path / "best.pt")["epoch"] == 2


def test_a_worse_epoch_after_the_resume_does_not_replace_best(tmp_path):
    values = [4.0, 1.0, 2.0, 3.0, 0.5]
    make(Values(*values), CheckpointSaver(tmp_path, "value", "min", keep=2)).fit(batches((4,)), epochs=3)
    saver = CheckpointSaver(tmp_path, "value", "min", keep=2, resume=True)
    with pytest.warns(UserWarning, match="epochs 3 -> 4"):
        make(Values(*values), saver).fit(batches((4,)), epochs=4)
    assert read(tmp_path / "best.pt")["epoch"] == 2
    assert [name for name in names(tmp_path) if name.startswith("epoch")] == ["epoch-0002.pt", "epoch-0003.pt"]
    with pytest.warns(UserWarning, match="epochs 4 -> 5"):
        make(Values(*values), saver).fit(batches((4,)), epochs=5)
    assert read(tmp_path / "best.pt")["epoch"] == 5
    assert [name for name in names(tmp_path) if name.startswith("epoch")] == ["epoch-0002.pt", "epoch-0005.pt"]


def test_the_best_model_is_that_of_the_highest_accuracy(tmp_path):
    def rising(output, target):
        return float(runner.state.epoch)

    rising.higher_is_better = True
    runner = make(CheckpointSaver(tmp_path, "val/rising"), metrics=[rising])
    runner.fit(batches((4,)), 3, val_loader=batches((4,)))
    assert read(tmp_path / "best.pt")["monitor"] == {"name": "val/rising", "value": 2.0, "weights": "model"}


def test_a_run_resumed_with_another_monitor_starts_its_best_from_scratch(tmp_path):
    make(CheckpointSaver(tmp_path), metrics=[accuracy]).fit(batches(), 2)
    saver = CheckpointSaver(tmp_path, "train/accuracy", "max", resume=True)
    with pytest.warns(UserWarning, match=r"monitor train/loss \(lower is better\) .* with train/accuracy \(higher"):
        history = make(saver, metrics=[accuracy]).fit(batches(), 3)
    best = read(tmp_path / "best.pt")["monitor"]
    assert best == {"name": "train/accuracy", "value": history[2]["train/accuracy"], "weights": "model"}
