"""ReduceLROnPlateau reduces the rates as torch does."""

import math

import pytest
import torch
from fit_callbacks import (
    ReduceLROnPlateau,
)
from fit_core import Runner
from scene import Logs, Watch, batches, lr_of, make
from torch import nn
from torch.optim import lr_scheduler


def test_a_plateau_reduces_as_torch_does():
    values = [1.0, 0.9, 0.95, 0.91, 0.92, 0.93, math.nan, 0.8, 0.85, 0.85, 0.85, 0.85]
    used = Watch("on_epoch_begin", lr_of)
    plateau = ReduceLROnPlateau("value", "min", factor=0.5, patience=1, cooldown=1, min_lr=0.02)
    make(Logs(value=values), plateau, used).fit(batches(), epochs=12)
    optimizer, expected = torch.optim.SGD([torch.zeros(1)], lr=0.1), []
    torchs = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, cooldown=1, min_lr=0.02)
    for value in values:
        expected.append(optimizer.param_groups[0]["lr"])
        torchs.step(value)
    assert used.seen == expected
    assert expected[-1] < 0.1 / 2


def test_each_group_has_a_least_rate_of_its_own():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 0.4}]
    plateau = ReduceLROnPlateau("value", "min", factor=0.1, patience=0, min_lr=[0.03, 0.02])
    optimizer = torch.optim.SGD(groups, lr=0.1)
    Runner(model, optimizer, nn.CrossEntropyLoss(), (), [Logs(value=[1.0] * 5), plateau]).fit(batches(), epochs=5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.03, 0.02]
    with pytest.raises(ValueError, match=r"one min_lr for each of the optimizer's 1 parameter groups, got 2\. Pass as"):
        make(ReduceLROnPlateau(min_lr=[0.1, 0.2])).fit(batches())


def test_a_plateau_refuses_wrong_options_at_once():
    with pytest.raises(TypeError, match="patiense"):
        ReduceLROnPlateau(patiense=3)
    with pytest.raises(ValueError, match=r"expected factor to be above 0 and below 1, got 2\.0"):
        ReduceLROnPlateau(factor=2.0)
