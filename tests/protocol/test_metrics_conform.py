"""Every metric of fit_metrics keeps the protocol, as the checks of fit_core.testing have it."""

import inspect

import pytest
import torch
from fit_core import Metric, Runner
from fit_core.testing import METRIC_CHECKS, MetricCase, check_measures, in_two_processes, measure_on_rank
from torch import nn

fm = pytest.importorskip("fit_metrics")

G = torch.Generator().manual_seed(0)
SCORES = torch.randn(40, 4, generator=G), torch.randint(4, (40,), generator=G)
LOGITS = torch.randn(40, generator=G), torch.randint(2, (40,), generator=G)
NUMBERS = torch.randn(40, generator=G), torch.randn(40, generator=G)
IMAGES = torch.rand(40, 1, 11, 12, generator=G), torch.rand(40, 1, 11, 12, generator=G)

CASES = {
    "AUROC": MetricCase(lambda: fm.AUROC(), *LOGITS),
    "Accuracy": MetricCase(lambda: fm.Accuracy(), *SCORES),
    "AveragePrecision": MetricCase(lambda: fm.AveragePrecision(4), *SCORES),
    "BalancedAccuracy": MetricCase(lambda: fm.BalancedAccuracy(4), *SCORES),
    "ConfusionMatrix": MetricCase(lambda: fm.ConfusionMatrix(4), *SCORES),
    "Dice": MetricCase(lambda: fm.Dice(), *LOGITS),
    "F1": MetricCase(lambda: fm.F1(4), *SCORES),
    "Jaccard": MetricCase(lambda: fm.Jaccard(4, average=None), *SCORES),
    "MeanAbsoluteError": MetricCase(lambda: fm.MeanAbsoluteError(), *NUMBERS),
    "MeanSquaredError": MetricCase(lambda: fm.MeanSquaredError(), *NUMBERS),
    "PSNR": MetricCase(lambda: fm.PSNR(), *IMAGES),
    "Precision": MetricCase(lambda: fm.Precision(4), *SCORES),
    "R2": MetricCase(lambda: fm.R2(), *NUMBERS),
    "Recall": MetricCase(lambda: fm.Recall(4), *SCORES),
    "SSIM": MetricCase(lambda: fm.SSIM(), *IMAGES),
}
each = pytest.mark.parametrize("name", CASES)
# What others derive from; none is a metric yet.
BASES = {"ClassScore", "ImageMetric", "MatrixMetric", "RankingMetric", "SumMetric"}


def test_no_metric_is_forgotten():
    classes = {name for name in fm.__all__ if inspect.isclass(getattr(fm, name))}
    assert classes - BASES == CASES.keys()
    assert classes >= BASES
    for name, case in CASES.items():
        assert type(case.make()) is getattr(fm, name)
        assert isinstance(case.make(), Metric)


def test_no_two_have_one_name():
    model = nn.Linear(1, 1)
    metrics = [case.make() for case in CASES.values()]
    Runner(model, torch.optim.SGD(model.parameters()), nn.MSELoss(), metrics)  # refuses two of a name
    assert len({metric.name for metric in metrics}) == len(CASES)


@each
@pytest.mark.parametrize("check", METRIC_CHECKS, ids=lambda check: check.__name__)
def test_a_metric_keeps_the_protocol(name, check, tmp_path):
    check(CASES[name], tmp_path)


def on_a_rank(rank, folder):
    return {name: measure_on_rank(case, rank) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return in_two_processes(on_a_rank, tmp_path_factory.mktemp("ranks"))


@each
def test_two_processes_have_the_value_of_one(name, ranks):
    first, second = (results[name] for results in ranks)
    check_measures(CASES[name], first, second)
