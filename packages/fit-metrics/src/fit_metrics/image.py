"""Measure how similar an image and its reconstruction are."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, pad

from .base import SumMetric
from .inputs import number_inputs

__all__ = ["PSNR", "SSIM", "ImageMetric"]


class ImageMetric(SumMetric):
    """Base of metrics that are computed for each image and averaged over images. A subclass defines `score`.

    Args:
        name: the name in the logs.
        data_range: the largest possible pixel minus the smallest, above 0: 2 for pixels in -1..1. None means 1 for
            floating images and 255 for uint8.

    Shapes:
        output `(N, C, H, W)`, floating or integer. The target has the same shape.

    Value:
        0-dim, and nan without images.

    Raises:
        TypeError: output or target is not a tensor of real numbers.
        ValueError: the shapes differ or are not those of images, `data_range` is not above 0, or it is missing for
            images of other dtypes. In `compute`: there were targets with a larger range.
    """

    capturable = True

    total: Tensor
    images: Tensor
    outside: Tensor

    def __init__(self, name: str, data_range: float | None = None) -> None:
        if data_range is not None and not data_range > 0:
            raise ValueError(f"expected data_range above 0, got {data_range!r}. Pass 255 for 0..255, 2 for -1..1")
        super().__init__(name, total=torch.float64, images=torch.long, outside=torch.long)
        self.data_range = data_range

    @abstractmethod
    def score(self, output: Tensor, target: Tensor, data_range: float) -> Tensor:
        """Return the score of each image, floating `(N,)`.

        Args:
            output: floating `(N, C, H, W)`.
            target: floating `(N, C, H, W)`.
            data_range: the largest possible pixel minus the smallest, above 0.
        """

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add a batch. The class describes the shapes."""
        image, truth = number_inputs(self.name, output, target)
        if truth.dim() != 4:
            raise ValueError(
                f"{self.name} expected images (N, C, H, W), got output {tuple(output.shape)} and target "
                f"{tuple(target.shape)}. Call unsqueeze(1) on both for gray images (N, H, W)"
            )
        data_range = self.data_range or _usual_range(self.name, output.dtype, target.dtype)
        self.total += self.score(image, truth, data_range).sum(dtype=self.total.dtype)
        self.images += len(truth)
        if truth.numel():  # The tolerance is for floating targets that were rounded.
            low, high = truth.aminmax()
            self.outside += high - low > 1.001 * data_range

    def compute(self) -> Tensor:
        """Return the mean over all images. Waits for the device to check the range of pixels.

        Raises:
            ValueError: there were targets with a larger range than `data_range`.
        """
        if outside := int(self.outside):
            known = self.data_range or "1 for floating images, 255 for uint8"
            raise ValueError(
                f"{self.name} expected targets with a range of at most data_range={known}, got {outside} batches with "
                "a larger one. Pass data_range=2 for -1..1, data_range=255 for 0..255"
            )
        return self.total / self.images


class PSNR(ImageMetric):
    """Compute the peak signal-to-noise ratio in dB: `10 log10(data_range ** 2 / mse)` of each image, then the mean.

    It equals torchmetrics' `PeakSignalNoiseRatio(dim=(1, 2, 3))`. A perfect image has an infinite one.

    Args:
        data_range: the largest possible pixel minus the smallest, above 0: 2 for pixels in -1..1. None means 1 for
            floating images and 255 for uint8.

    Raises:
        TypeError: output or target is not a tensor of real numbers.
        ValueError: `data_range` is not above 0, or the shapes are not those that `ImageMetric` describes.

    Examples:
        >>> psnr = PSNR()
        >>> psnr.update(torch.full((1, 3, 8, 8), 0.6), torch.full((1, 3, 8, 8), 0.5))
        >>> round(float(psnr.compute()), 3)
        20.0
    """

    higher_is_better = True

    def __init__(self, data_range: float | None = None) -> None:
        super().__init__("PSNR", data_range)

    def score(self, output: Tensor, target: Tensor, data_range: float) -> Tensor:
        """Return `10 log10(data_range ** 2 / mse)` of each image."""
        mse = mse_loss(output, target, reduction="none").mean((1, 2, 3))
        return 10 * torch.log10(data_range**2 / mse)


class SSIM(ImageMetric):
    """Compute the structural similarity of image and target, the mean over pixels and channels, then over images.

    `(2 mx my + c1) (2 sxy + c2) / ((mx^2 + my^2 + c1) (sx^2 + sy^2 + c2))` of means, variances and covariance under a
    Gaussian window of 11 x 11 pixels, sigma 1.5, with `c1 = (0.01 data_range)^2`, `c2 = (0.03 data_range)^2`. Wang,
    Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE
    Transactions on Image Processing 13(4), 2004. It equals torchmetrics' `StructuralSimilarityIndexMeasure`, which
    mirrors the images at their borders too. 1 at most.

    Args:
        data_range: the largest possible pixel minus the smallest, above 0: 2 for pixels in -1..1. None means 1 for
            floating images and 255 for uint8.

    Raises:
        TypeError: output or target is not a tensor of real numbers.
        ValueError: `data_range` is not above 0, the shapes are not those that `ImageMetric` describes, or images
            have fewer than 6 pixels in height or width.

    Examples:
        >>> ssim = SSIM(data_range=255)
        >>> image = torch.arange(64.0).view(1, 1, 8, 8)
        >>> ssim.update(image, image)
        >>> float(ssim.compute())
        1.0
    """

    higher_is_better = True

    def __init__(self, data_range: float | None = None) -> None:
        super().__init__("SSIM", data_range)

    def score(self, output: Tensor, target: Tensor, data_range: float) -> Tensor:
        """Return the mean of the structural similarity over each image."""
        if min(target.shape[2:]) < 6:
            raise ValueError(
                f"SSIM expected images of 6 x 6 pixels or more, got {tuple(target.shape)}. "
                "Use PSNR, or enlarge the images"
            )
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        maps = torch.cat([output, target, output * output + target * target, output * target], 1)
        mx, my, squares, product = _blur(maps).chunk(4, 1)
        both, means = mx * my, mx * mx + my * my
        similar = (2 * both + c1) * (2 * (product - both) + c2) / ((means + c1) * (squares - means + c2))
        return similar.mean((1, 2, 3))


def _blur(maps: Tensor) -> Tensor:
    """Return each channel under a Gaussian window, by rows and then by columns. The shape stays `(N, C, H, W)`."""
    window = [math.exp(-offset * offset / (2 * 1.5**2)) for offset in range(-5, 6)]
    maps = pad(maps, (5, 5, 5, 5), mode="reflect")
    # Not conv2d: variances are small differences, and autocast or TF32 would round them to 8 or 10 bits.
    for dim in (2, 3):
        size = maps.size(dim) - 10
        blurred = maps.narrow(dim, 0, size) * (window[0] / sum(window))
        for start, weight in enumerate(window[1:], 1):
            blurred.add_(maps.narrow(dim, start, size), alpha=weight / sum(window))
        maps = blurred
    return maps


def _usual_range(metric: str, *dtypes: torch.dtype) -> float:
    """Return the range of pixels that images of these dtypes usually have."""
    if all(dtype == torch.uint8 for dtype in dtypes):
        return 255.0
    if all(dtype.is_floating_point for dtype in dtypes):
        return 1.0
    raise ValueError(
        f"{metric} expected data_range= for images of {' and '.join(map(str, dtypes))}, got None. "
        "Pass data_range=255 for 0..255"
    )
