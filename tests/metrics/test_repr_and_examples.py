"""The repr of a metric is the call that makes it, and the examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

import fit_metrics as fm
import pytest
import torch


@pytest.mark.parametrize(
    ("metric", "call"),
    [
        (fm.Accuracy(), "Accuracy()"),
        (fm.Accuracy(5), "Accuracy(topk=5)"),
        (fm.Accuracy(1, 5, ignore_index=-100), "Accuracy(1, 5, ignore_index=-100)"),
        (fm.Accuracy(task="multilabel", exact_match=True), "Accuracy(task='multilabel', exact_match=True)"),
        (fm.Accuracy(5, name="top"), "Accuracy(topk=5, name='top')"),
        (fm.F1(), "F1()"),
        (fm.F1(10, average=None), "F1(num_classes=10, average=None)"),
        (fm.ConfusionMatrix(3, normalize="true"), "ConfusionMatrix(num_classes=3, normalize='true')"),
        (fm.AUROC(4, class_dim=-1), "AUROC(num_classes=4, class_dim=-1)"),
        (fm.AveragePrecision(), "AveragePrecision()"),
        (fm.BalancedAccuracy(2, name="fair"), "BalancedAccuracy(num_classes=2, name='fair')"),
        (fm.MeanSquaredError(root=True), "MeanSquaredError(root=True)"),
        (fm.R2(3), "R2(num_outputs=3)"),
        (fm.PSNR(255), "PSNR(data_range=255)"),
    ],
    ids=repr,
)
def test_repr_is_the_call_that_makes_the_metric(metric, call):
    assert repr(metric) == call
    assert repr(eval(call, vars(fm))) == call


def test_repr_of_a_metric_of_your_own():
    class Share(fm.SumMetric):
        def __init__(self, label, weight, *rest, floor=0.0, **options):
            super().__init__(label, right=torch.long)
            self.floor, self.weight = floor, weight

        def update(self, output, target):
            self.right += 1

        def compute(self):
            return self.right

    assert repr(Share("share", torch.ones(3), 1, floor=0.5, unused=2)) == "Share(floor=0.5)"


MODULES = [path.stem for path in Path(fm.__file__).parent.glob("*.py")]
WITH_EXAMPLES = {"accuracy", "base", "class_scores", "confusion", "curves", "image", "regression", "segmentation"}


@pytest.mark.parametrize("file", sorted(set(MODULES) - {"__init__"}))
def test_examples_in_docstrings(file):
    module = importlib.import_module(f"fit_metrics.{file}")
    failed, tried = doctest.testmod(module, extraglobs={"torch": torch, **vars(fm)})
    assert not failed
    assert bool(tried) == (file in WITH_EXAMPLES)
