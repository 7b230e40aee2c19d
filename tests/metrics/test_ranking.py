"""AUROC and average precision equal scikit-learn's: ties, absent classes, any split."""

import warnings

import numpy as np
import pytest
import torch
from fit_metrics import AUROC, AveragePrecision
from sklearn import metrics as sk
from values import value

G = torch.Generator().manual_seed(0)
LOGIT = torch.randn(60, generator=G)
BINARY = torch.randint(2, (60,), generator=G)
LOGITS = torch.randn(60, 4, generator=G)
TARGET = torch.randint(4, (60,), generator=G)


PAIRS = [(AUROC, sk.roc_auc_score), (AveragePrecision, sk.average_precision_score)]


@pytest.mark.parametrize("size", [1, 7, 60])
@pytest.mark.parametrize("step", [0, 0.5, 5])
@pytest.mark.parametrize(("metric", "theirs"), PAIRS)
def test_two_classes_with_ties_on_any_split(metric, theirs, step, size):
    scores = (LOGIT / step).round() if step else LOGIT
    expected = pytest.approx(theirs(BINARY, scores), rel=1e-12)
    assert float(value(metric(), *zip(scores.split(size), BINARY.split(size), strict=True))) == expected
    assert float(value(metric(), (scores[:, None], BINARY[:, None].float()))) == expected
    two = torch.stack([torch.zeros(60), scores], 1)
    assert float(value(metric(), (two, BINARY))) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("metric", "theirs"), PAIRS)
def test_halves(metric, theirs, dtype):
    scores = LOGIT.to(dtype)
    assert float(value(metric(), (scores, BINARY))) == pytest.approx(theirs(BINARY, scores.double()), rel=1e-12)


@pytest.mark.parametrize("average", ["macro", "weighted", "micro", None])
@pytest.mark.parametrize(("metric", "theirs"), PAIRS)
def test_several_classes(metric, theirs, average):
    probabilities = LOGITS.double().softmax(1)
    one_hot = torch.nn.functional.one_hot(TARGET, 4)
    expected = torch.as_tensor(theirs(one_hot, probabilities, average=average), dtype=torch.float64)
    torch.testing.assert_close(value(metric(4, average=average), (LOGITS, TARGET)), expected, rtol=1e-12, atol=0)
    given = value(metric(4, average=average), (probabilities, TARGET))  # probabilities are taken as they are
    torch.testing.assert_close(given, expected, rtol=1e-12, atol=0)
    if metric is AUROC and average in ("macro", "weighted"):
        ovr = sk.roc_auc_score(TARGET, probabilities, multi_class="ovr", average=average)
        assert float(expected) == pytest.approx(ovr, rel=1e-12)


def test_pixels_and_masked_ones():
    masks, target = LOGITS.view(3, 4, 5, 4).movedim(-1, 1), TARGET.view(3, 4, 5)
    assert value(AUROC(4), (masks, target)) == value(AUROC(4), (LOGITS, TARGET))
    kept = TARGET != 1
    border = torch.where(kept, TARGET, 255)
    for average in ("weighted", None):
        expected = value(AveragePrecision(4, average=average), (LOGITS[kept], TARGET[kept]))
        assert value(AveragePrecision(4, average=average, ignore_index=255), (LOGITS, border)).equal(expected)


def test_undefined_values_are_those_of_scikit_learn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for target in (torch.zeros(60, dtype=torch.long), torch.ones(60, dtype=torch.long)):
            for metric, theirs in PAIRS:
                expected = theirs(target, LOGIT)
                assert float(value(metric(), (LOGIT, target))) == pytest.approx(expected, nan_ok=True)
            assert np.isnan(sk.roc_auc_score(target, LOGIT))
    target = torch.where(TARGET == 2, 0, TARGET)  # class 2 is absent
    each = value(AUROC(4, average=None), (LOGITS, target))
    assert each.isnan().tolist() == [False, False, True, False]
    assert value(AUROC(4), (LOGITS, target)).isnan()
    kept, samples = each[[0, 1, 3]], torch.bincount(target)[[0, 1, 3]]
    weighted = (kept * samples).sum() / samples.sum()
    torch.testing.assert_close(value(AUROC(4, average="weighted"), (LOGITS, target)), weighted)


@pytest.mark.parametrize("metric", [AUROC, AveragePrecision])
def test_without_samples_or_with_nan_among_them_the_value_is_nan(metric):
    assert metric().compute().isnan()
    assert metric(4).compute().isnan()
    assert value(metric(ignore_index=0), (LOGIT, torch.zeros(60))).isnan()
    assert value(metric(), (LOGIT.index_fill(0, torch.tensor(3), torch.nan), BINARY)).isnan()
    assert value(metric(4), (LOGITS.index_fill(0, torch.tensor(3), torch.nan), TARGET)).isnan()


def test_shapes_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"AUROC expected 2 classes, got output \(60, 4\) and target \(60,\)\. Pass num_classes=4"
    ):
        AUROC().update(LOGITS, TARGET)
    with pytest.raises(ValueError, match=r"expected 5 classes, got output \(60, 4\)"):
        AUROC(5).update(LOGITS, TARGET)
    with pytest.raises(TypeError, match=r"expected floating scores, got an output of torch.int64. Pass the logits"):
        AUROC(4).update(TARGET, TARGET)
    metric = AUROC(4)
    metric.update(LOGITS, TARGET + 1)
    with pytest.raises(ValueError, match=r"expected targets and predicted classes in 0\.\.3, got \d+ outside"):
        metric.compute()


def test_an_output_may_be_overwritten_after_update():
    output, metric = LOGIT.clone(), AUROC()
    metric.update(output, BINARY)
    output.zero_()
    assert metric.compute() == value(AUROC(), (LOGIT, BINARY))
