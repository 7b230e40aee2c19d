"""Outputs (N, 1) and targets (N,) are not compared each with all without a word."""

import warnings

import pytest
import torch
from fit_core import Runner
from torch import nn

functional = nn.functional


def by_hand(output, target):
    return (output - target).square().mean()


class Module(nn.Module):
    def forward(self, output, target):
        return by_hand(output, target)


def data(*shape, rows=8):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(rows, 4, generator=generator), torch.randn(rows, *shape, generator=generator))] * 2


def make(criterion, metrics=(), model=None, **options):
    torch.manual_seed(0)
    model = model or nn.Linear(4, 1)
    return Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), criterion, metrics, **options)


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("options", [{}, {"use_bf16": True}])
@pytest.mark.parametrize(
    ("criterion", "name"),
    [(by_hand, "by_hand"), (functional.mse_loss, "mse_loss"), (nn.L1Loss(), "L1Loss"), (Module(), "Module")],
)
@pytest.mark.parametrize("verb", ["fit", "evaluate"])
def test_a_criterion_that_broadcasts_is_refused(criterion, name, options, verb):
    runner = make(criterion, **options)
    before = runner.state.model.weight.detach().clone()
    message = rf"got \(8, 1\) and \(8,\), which the criterion {name} broadcasts: .* the dataset: target.unsqueeze\(1"
    with pytest.raises(ValueError, match=message):
        getattr(runner, verb)(data())
    assert torch.equal(runner.state.model.weight, before)


@pytest.mark.parametrize(("weight", "bias"), [(0.0, 0.0), (1e-4, 0.5)])
def test_it_is_refused_of_a_model_that_predicts_one_number(weight, bias):
    model = nn.Linear(4, 1)
    nn.init.constant_(model.weight, weight)
    nn.init.constant_(model.bias, bias)
    with pytest.raises(ValueError, match="which the criterion by_hand broadcasts"):
        make(by_hand, model=model).fit(data())
    with pytest.raises(ValueError, match="which the metric by_hand broadcasts"):
        make(lambda output, target: by_hand(output.squeeze(1), target), [by_hand], model=model).evaluate(data())


def test_images_and_targets_with_a_column_are_refused_too():
    model = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (1, 2, 3)))
    with pytest.raises(ValueError, match=r"got \(8, 1, 2, 3\) and \(8, 2, 3\), which .* target.unsqueeze\(1\)"):
        make(by_hand, model=model).fit(data(2, 3))
    flat = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    with pytest.raises(ValueError, match=r"got \(8,\) and \(8, 1\), which .* from the dataset: target.squeeze\(1\)"):
        make(by_hand, model=flat).fit(data(1))


@pytest.mark.parametrize("samples", [1, 6])
def test_sequences_and_targets_with_a_last_dimension_of_one_are_refused_too(samples):
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(samples, 6, 4, generator=generator), torch.randn(samples, 6, generator=generator)
    with pytest.raises(
        ValueError, match=rf"got \({samples}, 6, 1\) and \({samples}, 6\), which .*: target.unsqueeze\(2"
    ):
        make(by_hand).fit([batch])
    flat = nn.Sequential(nn.Linear(4, 1), nn.Flatten(1))
    with pytest.raises(ValueError, match=r"which .* from the dataset: target.squeeze\(2\)"):
        make(by_hand, model=flat).fit([(batch[0], batch[1][:, :, None])])
    make(lambda output, target: by_hand(output.squeeze(2), target)).fit([batch])


def test_a_metric_that_broadcasts_is_refused():
    def accuracy(output, target):
        return ((output > 0) == (target > 0)).float().mean()

    def drops_the_column(output, target):
        return by_hand(output.squeeze(1), target)

    runner = make(drops_the_column, [accuracy])
    with pytest.raises(ValueError, match=r"\(8, 1\) and \(8,\), which the metric accuracy broadcasts"):
        runner.evaluate(data())


@pytest.mark.parametrize(
    "criterion",
    [
        lambda output, target: by_hand(output.squeeze(1), target),
        lambda output, target: by_hand(output[:, 0], target),
        lambda output, target: by_hand(output, target.unsqueeze(1)),
        lambda output, target: by_hand(output.flatten(), target.flatten()),
        lambda output, target: by_hand(output.view_as(target), target),
        lambda output, target: by_hand(functional.dropout(output.squeeze(1)), target),
    ],
)
def test_what_is_compared_one_by_one_is_taken(criterion):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(criterion, [criterion]).fit(data())
        make(criterion, [criterion]).fit(data(rows=1))
    make(by_hand, [by_hand]).fit(data(1))
