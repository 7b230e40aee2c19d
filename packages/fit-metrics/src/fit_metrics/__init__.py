"""Provide exact metrics that are computed on the device, for fit_core.Runner and for hand-written loops."""

from .accuracy import Accuracy
from .base import SumMetric
from .class_scores import F1, ClassScore, Precision, Recall
from .confusion import BalancedAccuracy, ConfusionMatrix, MatrixMetric
from .curves import AUROC, AveragePrecision
from .image import PSNR, SSIM, ImageMetric
from .ranking import RankingMetric
from .regression import R2, MeanAbsoluteError, MeanSquaredError
from .segmentation import Dice, Jaccard

__all__ = [
    "AUROC",
    "F1",
    "PSNR",
    "R2",
    "SSIM",
    "Accuracy",
    "AveragePrecision",
    "BalancedAccuracy",
    "ClassScore",
    "ConfusionMatrix",
    "Dice",
    "ImageMetric",
    "Jaccard",
    "MatrixMetric",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Precision",
    "RankingMetric",
    "Recall",
    "SumMetric",
]
