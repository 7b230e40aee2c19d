"""EarlyStopping ends a run that does not improve."""

import math

import pytest
from fit_callbacks import (
    EarlyStopping,
)
from scene import Logs, Snapshots, Watch, batches, load, make
from torch import nn


@pytest.mark.parametrize("mode", ["min", "max"])
def test_early_stopping_counts_epochs_without_improvement(mode, capsys):
    values = [5.0, 4.0, 4.2, math.nan, 3.95, 3.0, 3.0, math.inf, 3.5, 1.0]
    sign = 1 if mode == "min" else -1
    stopper = EarlyStopping("value", mode, patience=3, min_delta=0.1)
    history = make(Logs(value=[sign * value for value in values]), stopper).fit(batches(), epochs=10)
    # 4.0 is best until 3.95, which is not enough better: the third epoch in a row
    assert len(history) == 5
    assert "EarlyStopping: stopped after epoch 5. value was best at" in capsys.readouterr().out


def test_early_stopping_waits_again_after_an_improvement():
    values = [5.0, 4.0, 4.2, math.nan, 3.0, 3.0, math.inf, 3.5, 1.0]
    assert len(make(Logs(value=values), EarlyStopping("value", "min", patience=3)).fit(batches(), epochs=9)) == 8


def test_epochs_without_validation_do_not_count():
    runner = make(EarlyStopping(patience=2), lr=0.0, model=nn.Linear(6, 3))
    history = runner.fit(batches(), epochs=20, val_loader=batches(), validate_every=3)
    assert len(history) == 9  # best in epoch 3, not better in 6 and 9


def test_monitoring_validation_without_one_is_refused_before_the_first_step():
    steps = Watch("on_batch_end", lambda state: state.batch_idx)
    with pytest.raises(ValueError, match=r"Pass val_loader=... to fit, or monitor 'train/loss'"):
        make(steps, EarlyStopping("val/loss")).fit(batches())
    assert steps.seen == []


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match=r"expected mode to be 'min' .* got 'maximum'"):
        EarlyStopping("loss", "maximum")
    with pytest.raises(ValueError, match="expected patience to be 1 or more, got 0"):
        EarlyStopping(patience=0)
    with pytest.raises(ValueError, match="expected min_delta to be 0 or more"):
        EarlyStopping(min_delta=-1)


def test_a_run_that_was_stopped_stays_so_when_resumed_unless_patience_grows(capsys):
    def run(patience, saved=None):
        snapshots = Snapshots()
        runner = make(EarlyStopping("value", "min", patience=patience), Logs(value=[1.0] * 6), snapshots)
        runner.state.callbacks.reverse()
        if saved:
            runner.state.load_state_dict(load(saved))
        return runner.fit(batches((4,)), epochs=6), snapshots.saved

    history, saved = run(2)
    assert len(history) == 3
    capsys.readouterr()
    assert run(2, saved[-1])[0] == history
    printed = (
        "EarlyStopping: the run was stopped after epoch 3 and stays stopped. To train on, pass a larger patience\n"
    )
    assert capsys.readouterr().out == printed
    assert len(run(3, saved[-1])[0]) == 4
