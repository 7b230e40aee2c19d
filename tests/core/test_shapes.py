"""Modules that change their shapes: lazy ones, observers of quantization, buffers that grow."""

import copy
import io

import pytest
import torch
from fit_core import Callback, Runner
from torch import nn

quantization = pytest.importorskip("torch.ao.quantization")
pytestmark = pytest.mark.filterwarnings("ignore:.*(quant|reduce_range)")


class Grows(nn.Module):
    """Keeps the mean of every batch, and loads as many as were saved."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, input):
        if self.training:
            self.seen = torch.cat([self.seen, input.mean()[None]])
        return self.linear(input)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.seen = torch.zeros_like(state_dict[f"{prefix}seen"])
        super()._load_from_state_dict(state_dict, prefix, *args)


def lazy():
    return nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(1))


def quantized():
    model = nn.Sequential(quantization.QuantStub(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    return quantization.prepare_qat(model.train())


def data():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator)) for _ in range(4)]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


class Save(Callback):
    """Keeps the state after the second batch, as a file would."""

    def on_checkpoint(self, state):
        if state.samples_seen == 16:
            self.file = io.BytesIO()
            torch.save(state.state_dict(), self.file)

    def load(self):
        self.file.seek(0)
        return torch.load(self.file, weights_only=True)


@pytest.mark.parametrize("make", [lazy, quantized, Grows])
def test_a_run_of_a_model_that_changes_its_shapes_resumes_with_the_same_bits(make):
    torch.manual_seed(0)
    gold, save = make(), Save()
    Runner(gold, sgd(gold), nn.MSELoss(), callbacks=[save]).fit(data(), epochs=2)
    torch.manual_seed(1)
    model = make()
    runner = Runner(model, sgd(model), nn.MSELoss())
    runner.state.load_state_dict(save.load())
    runner.fit(data(), epochs=2)
    assert model.state_dict().keys() == gold.state_dict().keys()
    assert all(torch.equal(value, gold.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_criterion_that_changes_its_shapes_resumes_too():
    class Adaptive(Grows):
        def forward(self, output, target):
            return (super().forward(output.expand(-1, 4)) - target).square().mean()

    torch.manual_seed(0)
    model, criterion, save = nn.Linear(4, 1), Adaptive(), Save()
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.1)
    Runner(model, optimizer, criterion, callbacks=[save]).fit(data())
    model, criterion = nn.Linear(4, 1), Adaptive()
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.1)
    runner = Runner(model, optimizer, criterion)
    runner.state.load_state_dict(save.load())
    assert criterion.seen.tolist() == save.load()["criterion"]["seen"].tolist()
    assert len(criterion.seen) == 2


def test_what_does_not_adapt_is_refused_and_nothing_is_loaded():
    model, save = lazy(), Save()
    Runner(model, sgd(model), nn.MSELoss(), callbacks=[save]).fit(data())
    other = nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Linear(5, 1))
    before = copy.deepcopy(other[3].state_dict())
    runner = Runner(other, sgd(other), nn.MSELoss())
    with pytest.raises(ValueError, match=r"got one of another\. Nothing was loaded:") as caught:
        runner.state.load_state_dict(save.load())
    assert "0.weight (6, 4) -> uninitialized" in str(caught.value)
    assert "3.weight (1, 6) -> (1, 5)" in str(caught.value)
    assert isinstance(other[0].weight, nn.UninitializedParameter)
    assert all(torch.equal(value, before[name]) for name, value in other[3].state_dict().items())
