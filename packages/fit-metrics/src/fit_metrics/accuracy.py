"""Top-k accuracy."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import SumMetric

__all__ = ["Accuracy"]


class Accuracy(SumMetric):
    """The share of samples whose class is among the ``topk`` that the model holds most likely, in 0..1.

    ``correct / samples``, as scikit-learn's ``accuracy_score`` and ``top_k_accuracy_score`` compute it. Nothing in
    ``update`` waits for the device; counts are int64.

    Args:
        topk: how many guesses a sample has, 1 or more. The name in the logs is ``Acc@k``.
        ignore_index: a target that is not counted, such as the border class of a segmentation.
        threshold: for a single logit per sample, above which it means class 1. 0 for logits, 0.5 for probabilities.

    Shapes:
        * output ``(N, C)`` or ``(N, C, d1, ...)``: scores of C classes, of any floating dtype;
          target ``(N,)``, ``(N, 1)`` or ``(N, d1, ...)``: class indices; or, with the shape of the output, one-hot
          or soft targets, whose largest entry is the class.
        * output ``(N,)`` or ``(N, 1)``: a single logit; target of as many entries, 0 or 1.

    Raises:
        ValueError: ``topk`` is below 1 or above C, or the shapes do not fit.

    Example:
        >>> accuracy = Accuracy(1)
        >>> accuracy.update(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        >>> float(accuracy.compute())
        0.5
    """

    correct: Tensor
    samples: Tensor

    def __init__(self, topk: int = 1, *, ignore_index: int | None = None, threshold: float = 0.0) -> None:
        if isinstance(topk, bool) or not isinstance(topk, int) or topk < 1:
            raise ValueError(f"topk must be a whole number of 1 or more, got {topk!r}")
        super().__init__(f"Acc@{topk}", correct=torch.long, samples=torch.long)
        self.topk = topk
        self.ignore_index = ignore_index
        self.threshold = threshold

    def update(self, output: Tensor, target: Tensor) -> None:
        """Count a batch. Shapes are told in the class."""
        if output.dim() < 2 or (output.dim() == 2 and output.size(1) == 1):
            hits, target = self._binary(output, target)
        else:
            hits, target = self._multiclass(output, target)
        if self.ignore_index is not None:
            counted = target != self.ignore_index
            hits = hits & counted
            self.samples += counted.sum()
        else:
            self.samples += target.numel()
        self.correct += hits.sum()

    def compute(self) -> Tensor:
        """The accuracy over all batches, 0-dim, in 0..1; nan when there were no samples."""
        # Apple's MPS has no float64.
        return self.correct.to(torch.float32 if self.correct.device.type == "mps" else torch.float64) / self.samples

    def _binary(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.topk > 1:
            raise ValueError(
                f"Acc@{self.topk} of a single logit, shape {tuple(output.shape)}: only topk=1 has a meaning"
            )
        if output.numel() != target.numel():
            raise ValueError(f"output {tuple(output.shape)} and target {tuple(target.shape)} differ in their size")
        target = target.reshape(output.shape)
        return (output > self.threshold) == target.bool(), target

    def _multiclass(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        if self.topk > output.size(1):
            raise ValueError(
                f"Acc@{self.topk} needs {self.topk} classes, output {tuple(output.shape)} has {output.size(1)}"
            )
        if target.shape == output.shape:
            target = target.argmax(1)
        elif target.dim() == output.dim() and target.size(1) == 1:
            target = target.squeeze(1)
        if target.shape != output.shape[:1] + output.shape[2:]:
            raise ValueError(
                f"target {tuple(target.shape)} does not fit output {tuple(output.shape)}: expected class indices "
                f"{tuple(output.shape[:1] + output.shape[2:])}, or one-hot targets of the output's shape"
            )
        if self.topk == 1:
            return output.argmax(1) == target, target
        return (output.topk(self.topk, 1).indices == target.unsqueeze(1)).any(1), target
