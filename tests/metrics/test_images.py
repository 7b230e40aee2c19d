"""PSNR and SSIM equal torchmetrics'."""

import numpy as np
import pytest
import torch
from fit_metrics import PSNR, SSIM
from torchmetrics import image as theirs
from values import number

G = torch.Generator().manual_seed(0)
TARGET = torch.rand(5, 3, 20, 17, generator=G)
OUTPUT = (TARGET + 0.1 * torch.randn(5, 3, 20, 17, generator=G)).clamp(0, 1)


def psnr(data_range):
    return theirs.PeakSignalNoiseRatio(data_range=data_range, dim=(1, 2, 3))


def ssim(data_range):
    return theirs.StructuralSimilarityIndexMeasure(data_range=data_range)


PAIRS = [(PSNR, psnr, 1e-6), (SSIM, ssim, 1e-5)]


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize(("metric", "other", "tolerance"), PAIRS)
def test_equals_torchmetrics_on_any_split(metric, other, tolerance, size):
    expected = number(other(1.0), (OUTPUT, TARGET))
    assert number(metric(), *zip(OUTPUT.split(size), TARGET.split(size), strict=True)) == pytest.approx(
        expected, rel=tolerance
    )
    assert metric().name == metric.__name__


@pytest.mark.parametrize(("metric", "other", "tolerance"), PAIRS)
def test_bytes_and_halves_and_other_ranges(metric, other, tolerance):
    output, target = (255 * OUTPUT).byte(), (255 * TARGET).byte()
    expected = pytest.approx(number(other(255.0), (output.float(), target.float())), rel=tolerance)
    assert number(metric(), (output, target)) == expected
    assert number(metric(255), (output.int(), target.int())) == expected
    assert number(metric(data_range=255), (output.float(), target.float())) == expected
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        output, target = OUTPUT.to(dtype), TARGET.to(dtype)
        expected = number(other(1.0), (output.double(), target.double()))
        assert number(metric(), (output, target)) == pytest.approx(expected, rel=10 * tolerance)
    expected = number(other(2.0), (2 * OUTPUT - 1, 2 * TARGET - 1))
    assert number(metric(2.0), (2 * OUTPUT - 1, 2 * TARGET - 1)) == pytest.approx(expected, rel=tolerance)


def test_perfect_images():
    assert number(PSNR(), (TARGET, TARGET)) == np.inf
    assert number(SSIM(), (TARGET, TARGET)) == pytest.approx(1)


@pytest.mark.parametrize("metric", [PSNR, SSIM])
def test_no_images_are_nan(metric):
    assert np.isnan(number(metric()))
    assert np.isnan(number(metric(), (OUTPUT[:0], TARGET[:0])))


@pytest.mark.parametrize("metric", [PSNR, SSIM])
def test_images_that_do_not_fit(metric):
    with pytest.raises(ValueError, match=r"output and target of the same shape, got .* target \(4, 3, 20, 17\)"):
        metric().update(OUTPUT, TARGET[:4])
    with pytest.raises(
        ValueError, match=r"expected images \(N, C, H, W\), got output \(3, 20, 17\) .* Call unsqueeze\(1\)"
    ):
        metric().update(OUTPUT[0], TARGET[0])
    with pytest.raises(
        ValueError, match=r"data_range= for images of torch\.float32 and torch\.uint8, got None\. Pass data_range="
    ):
        metric().update(OUTPUT, TARGET.byte())
    with pytest.raises(ValueError, match="expected data_range above 0, got 0"):
        metric(0)
    metric = metric()
    metric.update(OUTPUT, 2 * TARGET - 1)
    with pytest.raises(
        ValueError, match=r"range of at most data_range=1 for .*, got 1 batches with a larger one\. Pass data_range=2"
    ):
        metric.compute()


def test_ssim_refuses_images_smaller_than_its_window():
    assert number(SSIM(), (OUTPUT[..., :6], TARGET[..., :6])) < 1
    with pytest.raises(ValueError, match=r"expected images of 6 x 6 pixels or more, got \(5, 3, 20, 5\)"):
        SSIM().update(OUTPUT[..., :5], TARGET[..., :5])


def test_autocast_leaves_ssim_alone():
    with torch.autocast("cpu", torch.bfloat16):
        inside = number(SSIM(), (OUTPUT, TARGET))
    assert inside == number(SSIM(), (OUTPUT, TARGET))
