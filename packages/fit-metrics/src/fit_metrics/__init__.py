"""Metrics, exact and on the device, for fit_core.Runner and for loops of your own."""

from .accuracy import Accuracy
from .base import SumMetric
from .confusion import F1, BalancedAccuracy, ClassScore, ConfusionMatrix, MatrixMetric, Precision, Recall
from .image import PSNR, SSIM, ImageMetric
from .ranking import AUROC, AveragePrecision, RankingMetric
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
