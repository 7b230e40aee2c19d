"""The documented place for logic of one's own: overriding `_make_step`, and assigning to it."""

import copy
import functools

import pytest
import torch
from fit_core import Callback, Runner
from torch import nn


def step(runner):
    """Sign descent, which no optimizer of torch does, on a batch that is a dict."""
    state = runner.state
    state.output = state.model(state.input["x"])
    state.target = state.input["y"]
    state.loss = state.criterion(state.output, state.target)
    if state.is_train:
        gradients = torch.autograd.grad(state.loss, list(state.model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(state.model.parameters(), gradients, strict=True):
                parameter -= 0.01 * gradient.sign()


class SignDescent(Runner):
    def _make_step(self):
        step(self)


def error(output, target):
    return (output - target).abs().mean()


def make(cls, metric=error):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return cls(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), [metric])


def test_override_and_assignment_do_the_same():
    generator = torch.Generator().manual_seed(0)
    data = [{"x": torch.randn(4, 3, generator=generator), "y": torch.zeros(4, 1)} for _ in range(5)]
    overridden = make(SignDescent)
    assigned = make(Runner)
    assigned._make_step = functools.partial(step, assigned)
    histories = [runner.fit(data, epochs=8, val_loader=data) for runner in (overridden, assigned)]
    assert histories[0] == histories[1]
    assert histories[0][-1]["val/error"] < histories[0][0]["val/error"] / 1.5
    assert histories[0][-1].keys() == {"epoch", "train/loss", "train/error", "lr", "val/loss", "val/error"}
    assert overridden.predict(data).shape == (20, 1)


def test_a_step_without_a_loss_is_logged_without_one():
    runner = make(Runner)
    calls = []
    runner._make_step = lambda: calls.append(runner.state.batch_idx)
    runner.state.metrics.clear()
    data = [torch.zeros(2, 3)] * 3
    history = runner.fit(data)
    assert calls == [0, 1, 2]
    assert history == [{"epoch": 1, "lr": 0.1}]


def test_metrics_of_a_step_without_a_target_are_handed_none():
    """As a GAN has it, whose output is all there is to judge."""

    def share_above_zero(output, target):
        assert target is None
        return (output > 0).float().mean()

    runner = make(Runner, share_above_zero)
    runner._make_step = lambda: setattr(runner.state, "output", runner.state.input)
    points = [torch.tensor([[1.0], [-1.0], [1.0], [1.0]])] * 2
    assert runner.fit(points, val_loader=points) == [
        {"epoch": 1, "train/share_above_zero": 0.75, "lr": 0.1, "val/share_above_zero": 0.75}
    ]
    assert torch.equal(runner.predict(points), torch.cat(points))


def test_no_output_of_the_batch_before_is_measured():
    seen = []

    def note(output, target):
        seen.append(output)
        return 0.0

    runner = make(Runner, note)
    runner._make_step = lambda: runner.state.batch_idx == 0 and setattr(runner.state, "output", runner.state.input)
    assert runner.evaluate([(torch.ones(4, 1), torch.ones(4, 1))] * 2) == {"val/note": 0.0}
    assert len(seen) == 1


class Detector(Runner):
    """Has a loss in training and predictions in evaluation, as the models of torchvision."""

    def forward(self):
        state = self.state
        output = state.model(state.input)
        if state.is_train:
            state.loss = state.criterion(output, state.target)
        else:
            state.output = output


def test_metrics_are_left_out_where_no_batch_has_an_output():
    data = [(torch.ones(4, 3), torch.ones(4, 1))] * 3
    row = make(Detector).fit(data, val_loader=data)[0]
    assert row.keys() == {"epoch", "train/loss", "lr", "val/error"}


def test_an_evaluation_that_measures_nothing_warns():
    runner = make(Runner)
    runner._make_step = lambda: None
    with pytest.warns(UserWarning, match=r"error could not be computed, .* Set state.output"):
        assert runner.evaluate([(torch.ones(4, 3), torch.ones(4, 1))]) == {}


@pytest.mark.parametrize("batches_done", [1, 2, 3])
def test_what_was_measured_before_an_interruption_counts(batches_done):
    """The output of the first batch is the only one."""

    class Stop(Callback):
        def on_checkpoint(self, state):
            if state.is_train and state.batch_idx == batches_done - 1 and not saved:
                saved.append(copy.deepcopy(state.state_dict()))

    def runner(*callbacks):
        runner = make(Runner)
        runner.state.callbacks.extend(callbacks)
        runner._make_step = lambda: runner.state.batch_idx == 0 and setattr(runner.state, "output", runner.state.input)
        return runner

    saved = []
    data = [(torch.ones(4, 1), torch.zeros(4, 1))] * 3
    history = runner(Stop()).fit(data)
    resumed = runner()
    resumed.state.load_state_dict(saved[0])
    assert resumed.fit(data) == history == [{"epoch": 1, "train/error": 1.0, "lr": 0.1}]
