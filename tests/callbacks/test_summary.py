"""The summary of a model: what it counts, and that it leaves the model alone."""

import pytest
import torch
from fit_callbacks import summary
from fit_callbacks.numbers import file_size
from fit_core import Runner
from scene import flat
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.LSTM(8, 2)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, input):
        return self.head(self.body(input))[0]


def test_parameters_frozen_parts_and_shapes():
    model = Net()
    model.body[0].requires_grad_(False)
    before = flat(model.state_dict())
    random = torch.random.get_rng_state()
    assert str(summary(model, torch.ones(5, 4))).splitlines() == [
        "Net: 155 parameters (620 B), 115 trainable, 40 frozen, float32 on cpu",
        "  body  Sequential  56  (5, 8)  40 frozen",
        "  head  LSTM        96  tuple",
        "        its own      3",
    ]
    assert flat(model.state_dict()) == before
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(module.training for module in model.modules())
    assert not model.body._forward_hooks
    model.requires_grad_(False)
    assert summary(model).splitlines()[2] == "  head  LSTM        96    frozen"


def test_a_runner_adds_what_it_trains_with():
    model = nn.Sequential(nn.Linear(40, 100, dtype=torch.float64))
    runner = Runner(model, torch.optim.Adam(model.parameters()), nn.CrossEntropyLoss(), use_bf16=True)
    text = summary(runner)
    assert text.splitlines() == [
        "Runner(Sequential, Adam, CrossEntropyLoss) on cpu with autocast to bfloat16, metrics: none",
        "Sequential: 4100 parameters (32.8 kB), all trainable, float64 on cpu",
        "  0  Linear  4100",
    ]
    assert repr(text) == str(text)  # what a prompt shows
    assert summary(nn.ReLU()) == "ReLU: no parameters"
    assert summary(nn.Linear(2, 1)) == "Linear: 3 parameters (12 B), all trainable, float32 on cpu"


def test_file_sizes_have_the_unit_that_fits():
    sizes = [0, 512, 999, 1000, 20_840, 999_949, 1_250_000, 3_400_000_000, 5e12]
    assert [file_size(size) for size in sizes] == [
        *("0 B", "512 B", "999 B", "1.0 kB", "20.8 kB", "1.0 MB", "1.2 MB", "3.4 GB", "5000.0 GB")
    ]


def test_a_lazy_model_needs_an_input():
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(
        ValueError, match=r"got a lazy one: 0.weight, 0.bias .*\. Pass an input: summary\(model, input\)"
    ):
        summary(model)
    assert "20" in summary(model, torch.zeros(1, 4))
