"""Scores of six classes, their targets, and metrics of them."""

import pytest
import torch
from fit_metrics import AUROC, F1, Accuracy, AveragePrecision, BalancedAccuracy, ConfusionMatrix
from torch.nn.functional import one_hot

G = torch.Generator().manual_seed(0)
LOGITS = torch.randn(40, 6, generator=G)
TARGET = torch.randint(6, (40,), generator=G)
ROWS = one_hot(TARGET, 6)
MAKERS = {
    "Accuracy": lambda **options: Accuracy(1, **options),
    "Accuracy(1, 3)": lambda **options: Accuracy(1, 3, **options),
    "F1": lambda **options: F1(6, **options),
    "ConfusionMatrix": lambda **options: ConfusionMatrix(6, **options),
    "BalancedAccuracy": lambda **options: BalancedAccuracy(6, **options),
    "AUROC": lambda **options: AUROC(6, **options),
    "AveragePrecision": lambda **options: AveragePrecision(6, **options),
}
each_metric = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
