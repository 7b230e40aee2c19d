"""Functions and methods in the order or under the name of another library are refused, and not called wrongly."""

import functools

import pytest
import torch
from fit_core import Runner
from torch import nn

BATCHES = [(torch.ones(4, 1), torch.ones(4, 1))]


def keras(y_true, y_pred):
    return torch.maximum(0.9 * (y_true - y_pred), 0.1 * (y_pred - y_true)).mean()


def swapped(target, output):
    return keras(target, output)


class Loss(nn.Module):
    def forward(self, labels, logits):
        return keras(labels, logits)


class Counts:
    def reset(self):
        pass

    def update(self, targets, preds):
        pass

    def compute(self):
        return 0.0


def make(kind=Runner, criterion=None, metrics=()):
    model = nn.Linear(1, 1)
    return kind(model, torch.optim.SGD(model.parameters(), lr=0.1), criterion or nn.MSELoss(), metrics)


@pytest.mark.parametrize(
    ("function", "name", "order"),
    [
        (keras, "keras", "y_true, y_pred"),
        (functools.partial(keras), "keras", "y_true, y_pred"),
        (swapped, "swapped", "target, output"),
        (Loss(), "Loss", "labels, logits"),
    ],
)
def test_a_function_that_takes_the_target_first_is_refused(function, name, order):
    ends = (
        rf"{name} to take \(output, target\), got \({order}\). Swap .* lambda output, target: {name}\(target, output\)"
    )
    with pytest.raises(TypeError, match=f"expected the criterion {ends}"):
        make(criterion=function)
    if not isinstance(function, nn.Module):
        with pytest.raises(TypeError, match=f"expected the metric {ends}"):
            make(metrics=[function])
    with pytest.raises(TypeError, match=r"expected the metric Counts to take .* got \(targets, preds\)"):
        make(metrics=[Counts()])


def test_metrics_of_scikit_learn_are_refused_and_their_wrapping_is_right():
    metrics = pytest.importorskip("sklearn.metrics")
    with pytest.raises(TypeError, match=r"the metric r2_score to take \(output, target\), got \(y_true, y_pred\)"):
        make(metrics=[metrics.r2_score])

    def r2(output, target):
        return metrics.r2_score(target, output)

    batch = torch.arange(4.0)[:, None], torch.tensor([[1.0], [3.0], [2.0], [7.0]])
    runner = make(metrics=[r2])
    output = runner.predict([batch])
    expected = 1 - float((batch[1] - output).square().sum() / (batch[1] - batch[1].mean()).square().sum())
    assert runner.evaluate([batch])["val/r2"] == pytest.approx(expected)


@pytest.mark.parametrize("function", [lambda output, target: 0.0, lambda a, b: 0.0, lambda *both: 0.0, max])
def test_other_orders_are_taken_as_they_are(function):
    make(metrics=[function])


def method(name, *, forward=False):
    members = {name: lambda self: None}
    return type("Own", (Runner,), members | ({"forward": lambda self: None} if forward else {}))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("training_step", "Override forward, which sets state.output and state.loss"),
        ("compute_loss", "Override forward"),
        ("configure_optimizers", "Pass the optimizer"),
        ("make_step", "Override _make_step"),
        ("forwards", r"Did you mean forward\?"),
    ],
)
def test_a_method_that_would_never_be_called_is_refused(name, hint):
    with pytest.raises(TypeError, match=f"expected Own to override forward or _make_step, got {name}. {hint}"):
        make(method(name))
    make(method(name, forward=True))  # which may call it
    make(method("plot_everything"))


def test_a_forward_that_takes_the_batch_is_refused():
    class Own(Runner):
        def forward(self, batch):
            pass

    with pytest.raises(TypeError, match=r"Own.forward to take \(self\), got \(self, batch\). The batch is in self"):
        make(Own)

    class Default(Runner):
        def forward(self, scale=1.0):
            super().forward()

    make(Default).fit(BATCHES)

    class Derived(Default):
        def forward(self, batch):
            pass

    with pytest.raises(TypeError, match=r"Derived.forward to take \(self\), got \(self, batch\)"):
        make(Derived)


def test_a_metric_without_a_return_is_refused():
    def forgets(output, target):
        output.mean()

    def several(output, target):
        return {"mean": output.mean()}

    with pytest.raises(TypeError, match=r"several to return a number .* got {'mean': .*For several, pass a function"):
        make(metrics=[several]).evaluate(BATCHES)

    with pytest.raises(TypeError, match=r"expected the metric forgets to return a number .* got None. Does it end"):
        make(metrics=[forgets]).evaluate(BATCHES)
