"""A criterion that is a module is part of the run: its modes, its device, its parameters and buffers."""

import copy
import warnings
from functools import partial

import pytest
import torch
from fit_core import Callback, Runner
from torch import nn


class Prototypes(nn.Module):
    """Learned class centres with a running temperature and dropout, as metric learning has it."""

    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.eye(3, 4))
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, output, target):
        if self.training:
            self.steps += 1
        return nn.functional.cross_entropy(self.dropout(output) @ self.centres.T, target)


def make(callbacks=()):
    torch.manual_seed(0)
    model, criterion = nn.Linear(4, 4), Prototypes()
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.1, momentum=0.9)
    return Runner(model, optimizer, criterion, (), callbacks), model, criterion


def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 4, generator=generator), torch.arange(4) % 3) for _ in range(4)]


def test_a_run_resumes_with_its_criterion_to_the_same_bits():
    saved = []

    class Save(Callback):
        def on_checkpoint(self, state):
            saved.append(copy.deepcopy(state.state_dict()))

    runner, model, criterion = make([Save()])
    history = runner.fit(batches(), 2)
    assert set(saved[0]["criterion"]) == {"centres", "steps"}
    for state in saved:
        again, resumed_model, resumed_criterion = make()
        again.state.load_state_dict(state)
        assert again.fit(batches(), 2) == history
        for module, resumed in ((model, resumed_model), (criterion, resumed_criterion)):
            for name, value in module.state_dict().items():
                assert torch.equal(value, resumed.state_dict()[name])


def test_a_state_with_another_criterion_is_refused_whole():
    runner, _, _ = make()
    runner.fit(batches())
    state = runner.state.state_dict()
    model = nn.Linear(4, 4)
    other = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
    before = model.weight.clone()
    with pytest.raises(
        ValueError, match=r"this criterion, got one of another\. Nothing was loaded:\n  unexpected: centres, steps"
    ):
        other.state.load_state_dict(state)
    assert torch.equal(model.weight, before)


def test_dropout_in_a_criterion_is_off_in_evaluation():
    runner, model, criterion = make()
    loss = runner.evaluate(batches())["val/loss"]
    output = torch.cat([input for input, _ in batches()])
    target = torch.cat([target for _, target in batches()])
    with torch.no_grad():
        assert loss == pytest.approx(float(nn.functional.cross_entropy(model(output) @ criterion.centres.T, target)))
    assert criterion.training


def test_a_criterion_on_another_device_is_refused():
    model = nn.Linear(4, 3)
    criterion = nn.CrossEntropyLoss(weight=torch.ones(3, device="meta"))
    with pytest.raises(
        ValueError, match=r'on the model\'s device cpu, got it on meta\. Move it: criterion.to\("cpu"\)'
    ):
        Runner(model, torch.optim.SGD(model.parameters()), criterion)


def test_parameters_of_a_criterion_that_nobody_trains_are_named():
    model, criterion = nn.Linear(4, 4), Prototypes()
    with pytest.warns(UserWarning, match=r"does not have 1 of 3 trainable parameters, .*: criterion\.centres\. Add"):
        Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), criterion).fit(batches())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make()[0].fit(batches())


class Partial(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen, self.dropout, self.head = nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, input):
        return self.head(self.dropout(self.frozen(input)))


def test_the_mode_of_each_submodule_is_put_back():
    model = Partial()
    model.frozen.eval()
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())

    def modes():
        return {name: module.training for name, module in model.named_modules()}

    before = modes()
    assert before["frozen"] is not before["dropout"]
    for call in (
        lambda: runner.evaluate(batches()),
        lambda: runner.predict(batches()),
        lambda: runner.fit(batches(), val_loader=batches()),
    ):
        call()
        assert modes() == before
    with pytest.raises(RuntimeError):
        runner.evaluate([(torch.ones(2, 5), torch.zeros(2, dtype=torch.long))])
    assert modes() == before


def test_an_evaluation_inside_an_epoch_leaves_a_frozen_layer_frozen():
    seen = []

    class Freeze(Callback):
        def on_loader_begin(self, state):
            if state.is_train:
                state.model.frozen.eval()

        def on_batch_end(self, state):
            if state.is_train and state.batch_idx == 1:
                runner.evaluate(batches())
                seen.append((state.model.frozen.training, state.model.dropout.training))

    model = Partial()
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), (), [Freeze()])
    runner.fit(batches())
    assert seen == [(False, True)]


class Around(nn.Module):
    """A user's module around a sum of torch, which it may divide."""

    def __init__(self, divides):
        super().__init__()
        self.sum = nn.MSELoss(reduction="sum")
        self.divides = divides
        self.calls = 0

    def forward(self, output, target):
        self.calls += 1
        return self.sum(output, target) / (len(target) if self.divides else 10)


@pytest.mark.parametrize(
    ("criterion", "name"),
    [
        (nn.MSELoss(reduction="sum"), "MSELoss"),
        (nn.HuberLoss(reduction="sum"), "HuberLoss"),
        (partial(nn.functional.mse_loss, reduction="sum"), "mse_loss"),
        (Around(divides=False), "Around"),
    ],
)
@pytest.mark.parametrize("verb", ["fit", "evaluate"])
def test_a_sum_over_the_batch_is_refused(criterion, name, verb):
    model = nn.Linear(4, 1)
    before = model.weight.detach().clone()
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), criterion)
    data = [(torch.randn(8, 4), torch.randn(8, 1)), (torch.randn(2, 4), torch.randn(2, 1))]
    with pytest.raises(ValueError, match=rf"criterion {name} to return the mean .* divide the sum by len\(target\)"):
        getattr(runner, verb)(data)
    assert torch.equal(model.weight, before)


def test_a_sum_that_is_divided_is_a_mean():
    torch.manual_seed(0)
    data = [(torch.randn(8, 4), torch.randn(8, 1)), (torch.randn(2, 4), torch.randn(2, 1))]
    model, criterion = nn.Linear(4, 1), Around(divides=True)
    value = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), criterion).evaluate(data)["val/loss"]
    by_hand = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss()).evaluate(data)["val/loss"]
    assert value == pytest.approx(by_hand, rel=1e-6)
    assert criterion.calls == 2  # the trial on halves counts nothing

    class Divides(Runner):
        def forward(self):
            state = self.state
            state.output = state.model(state.input)
            state.loss = state.criterion(state.output, state.target) / len(state.target)

    own = Divides(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(reduction="sum"))
    assert own.evaluate(data)["val/loss"] == pytest.approx(by_hand, rel=1e-6)
