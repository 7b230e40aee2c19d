"""Test the metric: its numbers, and that it keeps the protocol."""

import pytest
import torch
from fit_core.testing import METRIC_CHECKS, MetricCase
from fit_example import CalibrationError

G = torch.Generator().manual_seed(0)
CASE = MetricCase(CalibrationError, 2 * torch.randn(40, 4, generator=G), torch.randint(4, (40,), generator=G))


@pytest.mark.parametrize("check", METRIC_CHECKS)
def test_it_keeps_the_protocol(check, tmp_path):
    check(CASE, tmp_path)


def by_hand(output, target, bins):
    """Compute the error as it is defined: bin by bin, with plain numbers."""
    edges = [number / bins for number in range(bins)] + [1.1]
    confidence, predicted = output.softmax(1).max(1)
    samples = list(zip(confidence.tolist(), (predicted == target).tolist(), strict=True))
    error = 0.0
    for number in range(bins):
        inside = [(sure, right) for sure, right in samples if edges[number] <= sure < edges[number + 1]]
        if inside:
            mean = sum(sure for sure, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            error += len(inside) / len(samples) * abs(mean - accuracy)
    return error


@pytest.mark.parametrize("bins", [1, 2, 7, 15])
def test_the_value_is_that_of_the_definition(bins):
    metric = CalibrationError(bins)
    output = CASE.output.double()
    metric.update(output, CASE.target)
    assert float(metric.compute()) == pytest.approx(by_hand(output, CASE.target, bins), abs=1e-12)


def test_a_confidence_of_one_is_in_the_last_bin():
    metric = CalibrationError()
    metric.update(torch.tensor([[0.0, 1000.0]]), torch.tensor([1]))
    assert float(metric.compute()) == 0


def test_a_state_of_other_bins_is_refused():
    with pytest.raises(ValueError, match=r"expected a state with 10 bins, got 15\. Create the metric with bins=15"):
        CalibrationError(10).load_state_dict(CalibrationError(15).state_dict())


def test_there_must_be_a_bin():
    with pytest.raises(ValueError, match="expected bins of 1 or more, got 0"):
        CalibrationError(0)
