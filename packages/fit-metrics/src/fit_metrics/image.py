"""How alike an image and its reconstruction are."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import conv2d, mse_loss

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
    """Structural similarity of image and target, averaged over windows and channels, then over images; 1 at most.

    Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE
    Transactions on Image Processing 13(4), 2004, with its Gaussian window of 11 x 11 pixels, sigma 1.5, over the places
    where the window fits whole. torchmetrics' ``StructuralSimilarityIndexMeasure``.

    Args:
        data_range: the largest pixel less the smallest that there can be: 2 for pixels in -1..1. None means 1 for
            floating images and 255 for those of uint8.

    Shapes, value, errors: see :class:`ImageMetric`; images are 11 pixels high and wide, or more.
    """

    def __init__(self, data_range: float | None = None) -> None:
        super().__init__("SSIM", data_range)

    def score(self, output: Tensor, target: Tensor, data_range: float) -> Tensor:
        """``(2 mx my + c1) (2 sxy + c2) / ((mx^2 + my^2 + c1) (sx^2 + sy^2 + c2))``, averaged over each image."""
        if min(target.shape[2:]) < 11:
            raise ValueError(f"SSIM looks through windows of 11 x 11 pixels, the images are {tuple(target.shape)}")
        c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        maps = torch.cat([output, target, output * output + target * target, output * target], 1)
        mx, my, squares, product = _blur(maps).chunk(4, 1)
        both, means = mx * my, mx * mx + my * my
        similar = (2 * both + c1) * (2 * (product - both) + c2) / ((means + c1) * (squares - means + c2))
        return similar.flatten(1).mean(1)


def _blur(maps: Tensor) -> Tensor:
    """Each channel under a Gaussian window, by rows and then by columns: ``(N, C, H, W)`` to ``(N, C, H-10, W-10)``."""
    channels = maps.size(1)
    place = torch.arange(-5, 6, device=maps.device, dtype=maps.dtype)
    window = torch.exp(-place.square() / (2 * 1.5**2))
    window = (window / window.sum()).expand(channels, 1, 1, 11)
    with torch.autocast(maps.device.type, enabled=False):  # Variances are small differences: no halves here.
        return conv2d(conv2d(maps, window, groups=channels), window.mT, groups=channels)


def _usual_range(metric: str, *dtypes: torch.dtype) -> float:
    if all(dtype == torch.uint8 for dtype in dtypes):
        return 255.0
    if all(dtype.is_floating_point for dtype in dtypes):
        return 1.0
    raise ValueError(
        f"{metric} cannot tell the range of pixels of {' and '.join(map(str, dtypes))}: pass data_range=..."
    )
