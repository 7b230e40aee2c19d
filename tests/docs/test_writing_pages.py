"""What docs/writing shows keeps the protocol: its callback and its metrics pass the checks that the pages name."""

import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "protocol"))

from conformance import (  # noqa: E402  # it stands with the tests of the protocol
    CALLBACK_CHECKS,
    METRIC_CHECKS,
    CallbackCase,
    MetricCase,
    check_measures,
    check_ranks,
    in_two_processes,
    measure_on_rank,
    train_on_rank,
)


def names_of(page):
    """What the code of a page has defined when it has run."""
    text, names = (ROOT / "docs" / "writing" / page).read_text(), {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
    return names


LossSpikes = names_of("callback.md")["LossSpikes"]
CALLBACK = CallbackCase(lambda folder: [LossSpikes(1.01)])

METRIC_PAGE, G = names_of("metric.md"), torch.Generator().manual_seed(0)
SCORES, CLASSES = torch.randn(40, 4, generator=G), torch.arange(40) % 4
METRICS = {
    "RelativeError": MetricCase(METRIC_PAGE["RelativeError"], SCORES, SCORES + 1),
    "GeometricMean": MetricCase(lambda: METRIC_PAGE["GeometricMean"](4), SCORES, CLASSES),
}


@pytest.mark.parametrize("check", CALLBACK_CHECKS)
def test_the_callback_keeps_the_protocol(check, tmp_path):
    check(CALLBACK, tmp_path)


@pytest.mark.parametrize("check", METRIC_CHECKS)
@pytest.mark.parametrize("name", METRICS)
def test_the_metrics_keep_the_protocol(name, check, tmp_path):
    check(METRICS[name], tmp_path)


def on_a_rank(rank, folder):
    measured = {name: measure_on_rank(case, rank) for name, case in METRICS.items()}
    return {"callback": train_on_rank(CALLBACK, rank, folder), **measured}


def test_two_processes(tmp_path):
    one, other = in_two_processes(on_a_rank, tmp_path)
    check_ranks(one["callback"], other["callback"])
    for name, case in METRICS.items():
        check_measures(case, one[name], other[name])
