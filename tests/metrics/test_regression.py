"""Errors of numbers equal scikit-learn's, and do not drift."""

import numpy as np
import pytest
import torch
from fit_metrics import R2, MeanAbsoluteError, MeanSquaredError
from sklearn import metrics as sk
from values import number

G = torch.Generator().manual_seed(0)
TARGET = torch.randn(50, generator=G)
OUTPUT = TARGET + 0.3 * torch.randn(50, generator=G)


PAIRS = [
    (lambda: MeanSquaredError(), sk.mean_squared_error),
    (lambda: MeanSquaredError(root=True), sk.root_mean_squared_error),
    (lambda: MeanAbsoluteError(), sk.mean_absolute_error),
    (lambda: R2(), sk.r2_score),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 50])
@pytest.mark.parametrize(("metric", "theirs"), PAIRS)
def test_equals_scikit_learn_on_any_split(metric, theirs, size, dtype):
    output, target = OUTPUT.to(dtype), TARGET.to(dtype)
    expected = theirs(target.double(), output.double())
    ours = number(metric(), *zip(output.split(size), target.split(size), strict=True))
    assert ours == pytest.approx(expected, rel=1e-12 if dtype == torch.float64 else 1e-6)


def test_a_column_is_not_broadcast_to_a_matrix():
    for metric, theirs in PAIRS:
        expected = pytest.approx(theirs(TARGET, OUTPUT), rel=1e-6)
        assert number(metric(), (OUTPUT[:, None], TARGET)) == expected  # broadcast, this would be (50, 50)
        assert number(metric(), (OUTPUT, TARGET[:, None])) == expected


def test_integers_do_not_wrap_around():
    output, target = torch.tensor([0, 255, 3], dtype=torch.uint8), torch.tensor([255, 0, 3], dtype=torch.uint8)
    assert number(MeanAbsoluteError(), (output, target)) == 170
    big = 2**24 + torch.arange(3)
    assert number(MeanSquaredError(), (big + 1, big)) == 1
    assert number(MeanSquaredError(), (torch.full((3,), 2.0**24), big)) == pytest.approx(5 / 3)


def test_names():
    metrics = (MeanSquaredError(), MeanSquaredError(root=True), MeanAbsoluteError(), R2())
    assert [metric.name for metric in metrics] == ["MSE", "RMSE", "MAE", "R2"]


@pytest.mark.parametrize("shift", [0.0, 2024.0, -1e6])
@pytest.mark.parametrize("size", [1, 8, 50])
def test_r2_of_targets_far_from_0(shift, size):
    output, target = OUTPUT.double() + shift, TARGET.double() + shift
    ours = number(R2(), *zip(output.split(size), target.split(size), strict=True))
    assert ours == pytest.approx(sk.r2_score(target, output), rel=1e-9)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_r2_of_constant_targets(constant):
    target = torch.full((9,), constant, dtype=torch.float64)
    for output in (target, target + torch.arange(9)):
        expected = sk.r2_score(target, output)
        assert expected == float(output is target)
        assert number(R2(), *zip(output.split(2), target.split(2), strict=True)) == expected


def test_r2_of_columns_is_their_mean():
    output, target = OUTPUT.view(25, 2), TARGET.view(25, 2).clone()
    target[:, 1] = 1.0
    assert number(R2(2), (output, target)) == pytest.approx(sk.r2_score(target, output), rel=1e-6)
    with pytest.raises(
        ValueError, match=r"R2 expected output and target of shape \(N, 1\), got \(25, 2\)\. Pass the number of columns"
    ):
        R2().update(output, target)
    with pytest.raises(ValueError, match="expected num_outputs to be 1 or more, got 0"):
        R2(0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("sample", [0, 7])
def test_targets_that_are_not_finite_are_not_taken_for_constant_ones(bad, sample):
    target = TARGET.index_fill(0, torch.tensor(sample), bad)
    assert np.isnan(number(R2(), *zip(OUTPUT.split(5), target.split(5), strict=True)))


def test_too_few_samples_are_nan():
    for metric, _ in PAIRS:
        assert np.isnan(float(metric().compute()))
        assert np.isnan(number(metric(), (OUTPUT[:0], TARGET[:0])))
    assert np.isnan(number(R2(), (OUTPUT[:0], TARGET[:0]), (OUTPUT[:1], TARGET[:1])))


def test_shapes_that_differ():
    for metric, _ in PAIRS:
        with pytest.raises(
            ValueError, match=r"expected output and target of the same shape, got output \(50,\) and target \(49,\)"
        ):
            metric().update(OUTPUT, TARGET[1:])


def test_sums_do_not_drift_over_many_samples():
    output, target = torch.full((100_000,), 0.1), torch.zeros(100_000)
    squared, absolute = MeanSquaredError(), MeanAbsoluteError()
    for _ in range(100):  # ten million; a float32 sum of them is off in the third digit
        squared.update(output, target)
        absolute.update(output, target)
    exact = float(output[0])
    assert float(absolute.compute()) == pytest.approx(exact, rel=1e-12)
    assert float(squared.compute()) == pytest.approx(float(output[0] ** 2), rel=1e-12)


def test_the_graph_is_not_kept():
    metric = MeanSquaredError()
    metric.update(OUTPUT.clone().requires_grad_(), TARGET)
    assert not metric.total.requires_grad
