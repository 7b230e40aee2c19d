"""Test the callback: what it does, and that it keeps the protocol."""

import pytest
import torch
from fit_core import Runner
from fit_core.testing import CALLBACK_CHECKS, CallbackCase
from fit_example import Milestones
from torch import nn

# The first value is reached at once and the last never, so a resumed run must remember one and wait for the other.
CASE = CallbackCase(lambda folder: [Milestones("train/loss", [0.5, 9.0])])


@pytest.mark.parametrize("check", CALLBACK_CHECKS)
def test_it_keeps_the_protocol(check, tmp_path):
    check(CASE, tmp_path)


def score(output, target):
    return output.mean()


def fit(milestones, epochs=3, **options):
    """Train so that `train/score` is 1, 2, 3, ..., and `val/score` too."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    # The loss falls by 1 as the only weight grows by 1.
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    runner = Runner(model, optimizer, lambda output, target: -output.mean(), [score], [milestones])
    batch = (torch.ones(1, 1), torch.zeros(1, 1))
    return runner.fit([batch], epochs=epochs, **options)


def test_each_value_is_printed_once(capsys):
    milestones = Milestones("train/score", [2.5, 0.5])
    history = fit(milestones)
    assert [row["train/score"] for row in history] == [1, 2, 3]
    assert milestones.reached == {0.5: 1, 2.5: 3}
    assert [row["milestones"] for row in history] == [1, 1, 2]
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1: train/score has reached 0.5",
        "epoch 3: train/score has reached 2.5",
    ]


def test_a_second_run_starts_from_scratch():
    milestones = Milestones("train/score", [0.5, 2.5])
    fit(milestones)
    fit(milestones, epochs=1)
    assert milestones.reached == {0.5: 1}


def test_an_epoch_without_validation_is_skipped():
    milestones = Milestones("val/score", [1.5])
    history = fit(milestones, epochs=4, val_loader=[(torch.ones(1, 1), torch.zeros(1, 1))], validate_every=2)
    assert milestones.reached == {1.5: 2}
    assert ["milestones" in row for row in history] == [False, True, False, True]


def test_a_name_that_is_not_there():
    with pytest.raises(ValueError, match=r"got 'train/scores'\. Pass one of train/loss, train/score"):
        fit(Milestones("train/scores", [1]))
