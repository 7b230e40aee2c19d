"""How alike an image and its reconstruction are."""

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
    """Base of what is computed for an image and averaged over images; a subclass has :meth:`score`.

    Args:
        name: the name in the logs.
        data_range: the largest pixel less the smallest that there can be: 2 for pixels in -1..1. None means 1 for
            floating images and 255 for those of uint8.

    Shapes:
        output ``(N, C, H, W)``, floating or integer; target of the same shape.

    Value:
        0-dim; nan when there were no images.

    Raises:
        ValueError: the shapes differ or are not of images, or ``data_range`` cannot be told; in ``compute``, there were
            targets with a larger range.
    """

    total: Tensor
    images: Tensor
    outside: Tensor

    def __init__(self, name: str, data_range: float | None = None) -> None:
        if data_range is not None and not data_range > 0:
            raise ValueError(f"data_range must be above 0, got {data_range!r}")
        super().__init__(name, total=torch.float64, images=torch.long, outside=torch.long)
        self.data_range = data_range

    @abstractmethod
    def score(self, output: Tensor, target: Tensor, data_range: float) -> Tensor:
        """The score of each image, floating ``(N,)``.

        Args:
            output: floating ``(N, C, H, W)``.
            target: the same.
            data_range: above 0.
        """

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add up a batch. Shapes are told in the class."""
        image, truth = number_inputs(self.name, output, target)
        if truth.dim() != 4:
            raise ValueError(
                f"{self.name} got output {tuple(output.shape)} and target {tuple(target.shape)}, "
                "expected (N, C, H, W): unsqueeze(1) gray images"
            )
        data_range = self.data_range or _usual_range(self.name, output.dtype, target.dtype)
        self.total += self.score(image, truth, data_range).sum(dtype=self.total.dtype)
        self.images += len(truth)
        if truth.numel():  # A thousandth for what a floating target may have lost on its way.
            low, high = truth.aminmax()
            self.outside += high - low > 1.001 * data_range

    def compute(self) -> Tensor:
        """The mean over all images; waits for the device, to see that pixels were in their range."""
        if outside := int(self.outside):
            raise ValueError(
                f"{self.name}: the targets of {outside} batches have a larger range than data_range="
                f"{self.data_range or '1, or 255 of uint8'}: pass data_range=2 for -1..1, 255 for 0..255"
            )
        return self.total / self.images


class PSNR(ImageMetric):
    """Peak signal-to-noise ratio in dB: ``10 log10(data_range ** 2 / mse)`` of each image, averaged over images.

    torchmetrics' ``PeakSignalNoiseRatio(dim=(1, 2, 3))``. A perfect image has an infinite one.

    Args:
        data_range: the largest pixel less the smallest that there can be: 2 for pixels in -1..1. None means 1 for
            floating images and 255 for those of uint8.

    Shapes, value, errors: see :class:`ImageMetric`.

    Example:
        >>> psnr = PSNR()
        >>> psnr.update(torch.full((1, 3, 8, 8), 0.6), torch.full((1, 3, 8, 8), 0.5))
        >>> round(float(psnr.compute()), 3)
        20.0
    """

    def __init__(self, data_range: float | None = None) -> None:
        super().__init__("PSNR", data_range)

    def score(self, output: Tensor, target: Tensor, data_range: float) -> Tensor:
        """``10 log10(data_range ** 2 / mse)`` of each image."""
        mse = mse_loss(output, target, reduction="none").mean((1, 2, 3))
        return 10 * torch.log10(data_range**2 / mse)


class SSIM(ImageMetric):
    """Structural similarity of image and target, averaged over pixels and channels, then over images; 1 at most.

    Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE
    Transactions on Image Processing 13(4), 2004: ``(2 mx my + c1) (2 sxy + c2) / ((mx^2 + my^2 + c1) (sx^2 + sy^2 +
    c2))`` of means, variances and covariance under a Gaussian window of 11 x 11 pixels, sigma 1.5, with
    ``c1 = (0.01 data_range)^2``, ``c2 = (0.03 data_range)^2``. At borders the images are mirrored, as in torchmetrics'
    ``StructuralSimilarityIndexMeasure``.

    Args:
        data_range: the largest pixel less the smallest that there can be: 2 for pixels in -1..1. None means 1 for
            floating images and 255 for those of uint8.

    Shapes, value, errors: see :class:`ImageMetric`; images are 6 pixels high and wide, or more.

    Example:
        >>> ssim = SSIM(data_range=255)
        >>> image = torch.arange(64.0).view(1, 1, 8, 8)
        >>> ssim.update(image, image)
        >>> float(ssim.compute())
        1.0
    """

    def __init__(self, data_range: float | None = None) -> None:
        super().__init__("SSIM", data_range)

    def score(self, output: Tensor, target: Tensor, data_range: float) -> Tensor:
        """``(2 mx my + c1) (2 sxy + c2) / ((mx^2 + my^2 + c1) (sx^2 + sy^2 + c2))``, averaged over each image."""
        if min(target.shape[2:]) < 6:
            raise ValueError(f"SSIM mirrors 5 pixels at each border, the images {tuple(target.shape)} are too small")
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        maps = torch.cat([output, target, output * output + target * target, output * target], 1)
        mx, my, squares, product = _blur(maps).chunk(4, 1)
        both, means = mx * my, mx * mx + my * my
        similar = (2 * both + c1) * (2 * (product - both) + c2) / ((means + c1) * (squares - means + c2))
        return similar.mean((1, 2, 3))


def _blur(maps: Tensor) -> Tensor:
    """Each channel under a Gaussian window, by rows and then by columns: ``(N, C, H, W)``, as it came."""
    window = [math.exp(-place * place / (2 * 1.5**2)) for place in range(-5, 6)]
    maps = pad(maps, (5, 5, 5, 5), mode="reflect")
    # Not by conv2d: variances are small differences, and autocast or TF32 would make it round to 8 or 10 bits.
    for dim in (2, 3):
        size = maps.size(dim) - 10
        blurred = maps.narrow(dim, 0, size) * (window[0] / sum(window))
        for start, weight in enumerate(window[1:], 1):
            blurred.add_(maps.narrow(dim, start, size), alpha=weight / sum(window))
        maps = blurred
    return maps


def _usual_range(metric: str, *dtypes: torch.dtype) -> float:
    if all(dtype == torch.uint8 for dtype in dtypes):
        return 255.0
    if all(dtype.is_floating_point for dtype in dtypes):
        return 1.0
    raise ValueError(
        f"{metric} cannot tell the range of pixels of {' and '.join(map(str, dtypes))}: pass data_range=..."
    )
