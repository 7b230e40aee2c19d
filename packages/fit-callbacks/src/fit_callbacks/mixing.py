"""Mix batches with themselves: Mixup and Cutmix for classification, Cutmix for segmentation."""

from __future__ import annotations

import math

import torch
from fit_core import Callback, RunnerState
from torch import Tensor
from torch.nn.functional import one_hot

from .arguments import check_number, check_whole

__all__ = ["Cutmix", "Mixup", "SegmCutmix"]

Box = tuple[slice, slice]


class Mixup(Callback):
    """Replace training batches by `lam * batch + (1 - lam) * shuffled batch` (Zhang et al. 2018, arXiv:1710.09412).

    `lam` is drawn from Beta(alpha, alpha) for each batch. Targets are mixed the same way, so the criterion has to
    accept soft targets, as CrossEntropyLoss and BCEWithLogitsLoss do. Accuracy uses the class with the larger share.
    Validation is not changed. With both Mixup and Cutmix at `p=0.5`, some batches get both.

    Args:
        num_classes: converts class indices `(N,)` to soft targets `(N, num_classes)`. Not needed if targets are
            floating already: one-hot `(N, C)`, or for a single logit `(N,)`, `(N, 1)`.
        alpha: the parameter of the Beta distribution, above 0. The paper uses 0.1 to 0.4 on ImageNet, 1 on CIFAR.
        p: the share of batches that are mixed, in 0..1.

    Raises:
        ValueError: `alpha` or `p` is out of range, or targets are class indices and `num_classes` is missing.
        TypeError: input or target is not a tensor.

    Examples:
        >>> Mixup(num_classes=10, alpha=0.2)
    """

    def __init__(self, num_classes: int | None = None, alpha: float = 0.2, *, p: float = 1.0) -> None:
        _check(alpha, p, num_classes)
        self.num_classes = num_classes
        self.alpha = alpha
        self.p = p

    def on_batch_begin(self, state: RunnerState) -> None:
        """Mix the batch."""
        if not state.is_train:
            return
        input, target = _tensors(self, state)
        target = _soft(target, self.num_classes)
        if _chance(self.p):
            lam, order = _beta(self.alpha), torch.randperm(len(input), device=input.device)
            state.input = _mix(input, input[order], lam)
            target = _mix(target, target[order], lam)
        state.target = target


class Cutmix(Callback):
    """Paste a box of another image into each image of a training batch (Yun et al. 2019, arXiv:1905.04899).

    The box covers a share `1 - lam` of the image, with `lam` drawn from Beta(alpha, alpha) for each batch. The part
    outside the image is cut off, and targets are mixed by the actual shares. Otherwise it works as `Mixup`.
    Images are `(N, C, H, W)`.

    Args:
        num_classes: converts class indices to soft targets, as for `Mixup`.
        alpha: the parameter of the Beta distribution, above 0. The paper uses 1.
        p: the share of batches that are mixed, in 0..1.

    Raises:
        ValueError: `alpha` or `p` is out of range, targets are class indices and `num_classes` is missing, or the
            input is not a batch of images.
        TypeError: input or target is not a tensor.

    Examples:
        >>> Cutmix(num_classes=10, p=0.5)
    """

    def __init__(self, num_classes: int | None = None, alpha: float = 1.0, *, p: float = 1.0) -> None:
        _check(alpha, p, num_classes)
        self.num_classes = num_classes
        self.alpha = alpha
        self.p = p

    def on_batch_begin(self, state: RunnerState) -> None:
        """Mix the batch."""
        if not state.is_train:
            return
        input, target = _tensors(self, state)
        target = _soft(target, self.num_classes)
        if _chance(self.p):
            box, order = _box(input, self.alpha), torch.randperm(len(input), device=input.device)
            state.input = _paste(input, input[order], box)
            share_kept = 1 - input[0, 0][box].numel() / input[0, 0].numel()
            target = _mix(target, target[order], share_kept)
        state.target = target


class SegmCutmix(Callback):
    """Apply Cutmix to images and masks: the box is pasted into the mask too, so targets are not mixed.

    Args:
        alpha: the parameter of the Beta distribution, above 0.
        p: the share of batches that are mixed, in 0..1.

    Shapes:
        input `(N, C, H, W)`. The target is `(N, H, W)` or `(N, K, H, W)`.

    Raises:
        ValueError: `alpha` or `p` is out of range, or input and target are not images of the same height and width.
        TypeError: input or target is not a tensor.

    Examples:
        >>> SegmCutmix(p=0.5)
    """

    def __init__(self, alpha: float = 1.0, *, p: float = 1.0) -> None:
        _check(alpha, p)
        self.alpha = alpha
        self.p = p

    def on_batch_begin(self, state: RunnerState) -> None:
        """Mix the batch."""
        if not state.is_train or not _chance(self.p):
            return
        input, target = _tensors(self, state)
        box, order = _box(input, self.alpha), torch.randperm(len(input), device=input.device)
        if target.shape[-2:] != input.shape[-2:]:
            raise ValueError(
                f"expected masks of the images' height and width, got input {tuple(input.shape)} and target "
                f"{tuple(target.shape)}. Resize the masks in the dataset"
            )
        state.input, state.target = _paste(input, input[order], box), _paste(target, target[order], box)


def _check(alpha: float, p: float, num_classes: int | None = None) -> None:
    if num_classes is not None:
        check_whole("num_classes", num_classes, 2)
    check_number("alpha", alpha, "(0, inf)")
    check_number("p", p, "[0, 1]")


def _tensors(callback: Callback, state: RunnerState) -> tuple[Tensor, Tensor]:
    for name, value in (("input", state.input), ("target", state.target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{type(callback).__name__} expected the {name} to be a tensor, got {type(value).__name__}")
    return state.input, state.target


def _soft(target: Tensor, num_classes: int | None) -> Tensor:
    if target.is_floating_point():
        return target
    if num_classes is None:
        raise ValueError(
            f"expected num_classes for targets that are class indices, got {tuple(target.shape)} of {target.dtype}. "
            "Pass num_classes=..."
        )
    if target.dim() == 2 and target.size(1) == num_classes != 1:
        return target.float()
    return one_hot(target.flatten().long(), num_classes).float()


def _chance(p: float) -> bool:
    return p == 1 or torch.rand(()).item() < p


def _beta(alpha: float) -> float:
    return torch.distributions.Beta(alpha, alpha).sample().item()


def _mix(batch: Tensor, shuffled: Tensor, lam: float) -> Tensor:
    return shuffled.lerp(batch, lam)


def _box(images: Tensor, alpha: float) -> Box:
    """Return a box around a random point, which covers a random share of the image. The part outside is cut off."""
    if images.dim() != 4:
        raise ValueError(f"expected images (N, C, H, W), got input {tuple(images.shape)}")
    side = math.sqrt(1 - _beta(alpha))

    def span(size: int) -> slice:
        length, middle = int(size * side), int(torch.randint(size, ()))
        return slice(max(0, middle - length // 2), min(size, middle + length - length // 2))

    return span(images.size(2)), span(images.size(3))


def _paste(images: Tensor, others: Tensor, box: Box) -> Tensor:
    result = images.clone()
    result[..., box[0], box[1]] = others[..., box[0], box[1]]
    return result
