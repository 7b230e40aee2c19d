"""The confusion matrix and its scores equal scikit-learn's, also if a class is absent."""

import warnings

import pytest
import torch
from fit_metrics import F1, BalancedAccuracy, ConfusionMatrix, Dice, Jaccard, Precision, Recall
from sklearn import metrics as sk
from values import value

G = torch.Generator().manual_seed(0)
LOGITS = torch.randn(60, 5, generator=G)
TARGET = torch.randint(5, (60,), generator=G)
PREDICTED = LOGITS.argmax(1)
SCORES = {
    Precision: sk.precision_score,
    Recall: sk.recall_score,
    F1: sk.f1_score,
    Dice: sk.f1_score,
    Jaccard: sk.jaccard_score,
}
ABSENT_TARGET = torch.where(TARGET == 2, 0, TARGET)
ABSENT_LOGITS = LOGITS.index_fill(1, torch.tensor(3), -9.0)
CASES = {
    "random": (LOGITS, TARGET),
    "no target of class 2": (LOGITS, ABSENT_TARGET),
    "class 3 never predicted": (ABSENT_LOGITS, TARGET),
    "a class in neither": (LOGITS.index_fill(1, torch.tensor(2), -9.0), ABSENT_TARGET),
    "one sample": (LOGITS[:1], TARGET[:1]),
    "nothing right": (torch.eye(5), (torch.arange(5) + 1) % 5),
}


def theirs(score, target, predicted, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.as_tensor(score(target, predicted, zero_division=0, **options), dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("average", ["micro", "macro", "weighted", None])
@pytest.mark.parametrize("metric", SCORES)
def test_scores_equal_scikit_learns(metric, average, case):
    output, target = CASES[case]
    labels = range(5) if average is None else None  # else those that occur, as scikit-learn takes them by itself
    expected = theirs(SCORES[metric], target, output.argmax(1), average=average, labels=labels)
    torch.testing.assert_close(value(metric(5, average=average), (output, target)), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("threshold", [0.0, 0.3])
@pytest.mark.parametrize("metric", SCORES)
def test_the_score_of_two_classes_is_that_of_class_1(metric, threshold):
    logit, target = LOGITS[:, 0], TARGET % 2
    expected = theirs(SCORES[metric], target, logit > threshold)
    for output in (logit, logit[:, None]):
        for true in (target, target[:, None], target.bool(), target.float()):
            assert value(metric(threshold=threshold), (output, true)) == expected
    macro = theirs(SCORES[metric], target, logit > threshold, average="macro")
    assert value(metric(2, threshold=threshold), (logit, target)) == macro


@pytest.mark.parametrize("normalize", ["true", "pred", "all", None])
def test_confusion_matrix_equals_scikit_learns(normalize):
    for output, target in CASES.values():
        expected = sk.confusion_matrix(target, output.argmax(1), labels=range(5), normalize=normalize)
        ours = value(ConfusionMatrix(5, normalize=normalize), *zip(output.split(7), target.split(7), strict=True))
        torch.testing.assert_close(ours, torch.as_tensor(expected))


def test_balanced_accuracy_equals_scikit_learns():
    for output, target in CASES.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = sk.balanced_accuracy_score(target, output.argmax(1))
        assert float(value(BalancedAccuracy(5), (output, target))) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("metric", [Jaccard, Dice])
def test_masks(metric):
    logits = torch.randn(3, 4, 6, 5, generator=G)
    target = torch.randint(4, (3, 6, 5), generator=G)
    expected = theirs(SCORES[metric], target.flatten(), logits.argmax(1).flatten(), average="macro")
    one_hot = torch.nn.functional.one_hot(target, 4).movedim(-1, 1)
    soft = 0.7 * one_hot + 0.3 * one_hot.roll(1, 0)
    for true in (target, target[:, None], one_hot, one_hot.bool(), soft):
        torch.testing.assert_close(value(metric(4), (logits, true)), expected)
    logit, target = logits[:, :1], target > 1  # (N, 1, H, W)
    expected = theirs(SCORES[metric], target.flatten(), logit.flatten() > 0)
    for true in (target, target[:, None], target[:, None].float()):
        torch.testing.assert_close(value(metric(), (logit, true)), expected)


def test_predicted_classes_in_place_of_scores():
    assert (
        value(F1(5), (PREDICTED, TARGET)) == value(F1(5), (PREDICTED.byte(), TARGET)) == value(F1(5), (LOGITS, TARGET))
    )


def test_masked_targets_are_not_counted():
    kept = TARGET != 3
    for metric in (F1, Jaccard, BalancedAccuracy):
        assert value(metric(5, ignore_index=3), (LOGITS, TARGET)) == value(metric(5), (LOGITS[kept], TARGET[kept]))
    border = torch.where(TARGET == 3, 255, TARGET)  # outside of the classes, as in a segmentation
    expected = value(ConfusionMatrix(5), (LOGITS[kept], TARGET[kept]))
    assert value(ConfusionMatrix(5, ignore_index=255), (LOGITS, border.byte())).equal(expected)


def test_no_samples_are_nan():
    for metric in (F1(5), F1(), Recall(5, average="micro"), Jaccard(5, average="weighted"), BalancedAccuracy(5)):
        assert metric.compute().isnan()
    assert value(F1(5, ignore_index=1), (LOGITS, torch.ones_like(TARGET))).isnan()  # all masked
    assert value(F1(5, average=None), (LOGITS[:0], TARGET[:0])).isnan().all()
    assert int(ConfusionMatrix(5).compute().sum()) == 0


def test_targets_and_predictions_outside_of_the_classes_are_reported():
    for output, target in ((LOGITS, TARGET - 1), (PREDICTED + 1, TARGET)):
        metric = F1(5)
        metric.update(output, target)
        with pytest.raises(
            ValueError,
            match=r"F1 expected targets and predicted classes in 0..4, got \d+ outside. Correct them, or pass ignore",
        ):
            metric.compute()


@pytest.mark.parametrize(
    ("metric", "output", "target", "message"),
    [
        (F1(4), LOGITS, TARGET, r"expected 4 classes, got output \(60, 5\) and target \(60,\)\. Pass num_classes=5"),
        (F1(), LOGITS, TARGET, r"expected 2 classes, got output \(60, 5\) and target \(60,\)\. Pass num_classes=5"),
        (
            F1(5),
            LOGITS[:, 0],
            TARGET,
            r"expected scores of 5 classes, got a single logit .* Leave num_classes out, or return \(N, 5\)",
        ),
        (F1(5), LOGITS, TARGET[:7], r"output \(60, 5\) and target \(7,\)"),
        (Jaccard(5), LOGITS.view(6, 5, 2, 5), TARGET[:30].view(6, 5), r"\(6, 2, 5\) or \(6, 5, 2\), or .* class_dim="),
    ],
)
def test_shapes_that_do_not_fit(metric, output, target, message):
    with pytest.raises(ValueError, match=message):
        metric.update(output, target)


def test_arguments_that_are_refused():
    with pytest.raises(
        ValueError, match="expected average to be one of 'micro', 'macro', 'weighted', None, got 'samples'"
    ):
        F1(5, average="samples")
    with pytest.raises(ValueError, match=r"expected num_classes with average=.micro., got None\. Pass num_classes="):
        F1(average="micro")
    with pytest.raises(ValueError, match="expected num_classes to be 2 or more, got 1"):
        ConfusionMatrix(1)
    with pytest.raises(TypeError, match=r"expected num_classes to be a whole number, got 2\.0"):
        ConfusionMatrix(2.0)
    with pytest.raises(ValueError, match="expected normalize to be 'true', 'pred', 'all' or None, got 'rows'"):
        ConfusionMatrix(3, normalize="rows")


def test_counts_are_whole_numbers_beyond_float32():
    metric = ConfusionMatrix(2)
    output, target = torch.ones(100_000), torch.ones(100_000, dtype=torch.long)
    for _ in range(200):
        metric.update(output, target)
    assert metric.compute().tolist() == [[0, 0], [0, 20_000_000]]
