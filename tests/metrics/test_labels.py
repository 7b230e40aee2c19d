"""Multi-label metrics equal scikit-learn's, also if a label never occurs, and torchmetrics' where it has no such."""

import warnings

import pytest
import torch
import torchmetrics.classification as tm
from fit_core import Runner
from fit_metrics import (
    AUROC,
    F1,
    Accuracy,
    AveragePrecision,
    BalancedAccuracy,
    ConfusionMatrix,
    Dice,
    Jaccard,
    Precision,
    Recall,
)
from sklearn import metrics as sk
from torch import nn
from values import value

G = torch.Generator().manual_seed(0)
LOGITS = torch.randn(60, 5, generator=G)
TARGET = (torch.rand(60, 5, generator=G) < 0.4).long()
SCORES = {
    Precision: sk.precision_score,
    Recall: sk.recall_score,
    F1: sk.f1_score,
    Dice: sk.f1_score,
    Jaccard: sk.jaccard_score,
}
CURVES = {AUROC: sk.roc_auc_score, AveragePrecision: sk.average_precision_score}
NEVER = TARGET.index_fill(1, torch.tensor(2), 0)
CASES = {
    "random": (LOGITS, TARGET),
    "label 2 never occurs": (LOGITS, NEVER),
    "label 3 is never predicted": (LOGITS.index_fill(1, torch.tensor(3), -9.0), TARGET),
    "a label in neither": (LOGITS.index_fill(1, torch.tensor(2), -9.0), NEVER),
    "no label at all": (LOGITS, torch.zeros_like(TARGET)),
    "nothing predicted": (-LOGITS.abs(), TARGET),
    "all right": (2.0 * TARGET - 1, TARGET),
}


def theirs(score, target, predicted, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.as_tensor(score(target, predicted, **options), dtype=torch.float64)


def test_a_perfect_model_has_the_best_value_of_every_metric():
    metrics = [F1(5, task="multilabel"), Accuracy(task="multilabel"), AUROC(5, task="multilabel")]
    metrics += [AveragePrecision(5, task="multilabel"), Accuracy(task="multilabel", exact_match=True)]
    for metric in metrics:
        assert value(metric, CASES["all right"]) == 1


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("average", ["micro", "macro", "weighted", None])
@pytest.mark.parametrize("metric", SCORES)
def test_scores_equal_scikit_learns(metric, average, case):
    output, target = CASES[case]
    expected = theirs(SCORES[metric], target, output > 0, average=average, zero_division=0)
    for true in (target, target.bool(), target.float()):
        ours = value(metric(5, task="multilabel", average=average), *zip(output.split(7), true.split(7), strict=True))
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("average", ["micro", "macro", "weighted", None])
@pytest.mark.parametrize("metric", CURVES)
def test_curves_equal_scikit_learns(metric, average, case):
    output, target = CASES[case]
    expected = theirs(CURVES[metric], target, output, average=average)
    if metric is AUROC and case == "no label at all":
        expected = torch.full_like(expected, torch.nan)  # scikit-learn has 0 for "weighted", and nan for the others
    ours = value(metric(5, task="multilabel", average=average), *zip(output.split(7), target.split(7), strict=True))
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", CASES)
def test_accuracy_is_that_of_labels_or_of_whole_rows(case):
    output, target = CASES[case]
    batches = list(zip(output.split(7), target.split(7), strict=True))
    labels = float(value(Accuracy(task="multilabel"), *batches))
    assert labels == pytest.approx(1 - sk.hamming_loss(target, output > 0), rel=1e-12)
    micro = value(tm.MultilabelAccuracy(5, average="micro"), (output.sigmoid(), target))
    assert labels == pytest.approx(float(micro), rel=1e-6)
    rows = value(Accuracy(task="multilabel", exact_match=True), *batches)
    assert float(rows) == sk.accuracy_score(target, output > 0)


@pytest.mark.parametrize("normalize", ["true", "pred", "all", None])
@pytest.mark.parametrize("case", CASES)
def test_confusion_matrices_equal_scikit_learns_and_torchmetrics(case, normalize):
    output, target = CASES[case]
    ours = value(
        ConfusionMatrix(5, task="multilabel", normalize=normalize),
        *zip(output.split(7), target.split(7), strict=True),
    )
    if normalize is None:
        assert ours.equal(torch.as_tensor(sk.multilabel_confusion_matrix(target, output > 0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = value(tm.MultilabelConfusionMatrix(5, normalize=normalize), (output.sigmoid(), target))
    torch.testing.assert_close(ours, other, check_dtype=False)


def test_predicted_labels_and_thresholds():
    predicted = LOGITS > 0.3
    expected = theirs(sk.f1_score, TARGET, predicted, average="macro")
    ours = [value(F1(5, task="multilabel", threshold=0.3), (LOGITS, TARGET))]
    ours += [value(F1(5, task="multilabel"), (output, TARGET)) for output in (predicted, predicted.long())]
    torch.testing.assert_close(torch.stack(ours), expected.expand(3), rtol=1e-12, atol=0)
    expected = 1 - sk.hamming_loss(TARGET, predicted)
    assert float(value(Accuracy(task="multilabel", threshold=0.3), (LOGITS, TARGET))) == pytest.approx(expected)


MASKS = LOGITS.view(2, 2, 15, 5).movedim(-1, 1)  # (N, C, H, W)
TRUE_MASKS = TARGET.view(2, 2, 15, 5).movedim(-1, 1)


@pytest.mark.parametrize(
    "make", [lambda **options: Jaccard(5, task="multilabel", **options), lambda **o: AUROC(5, task="multilabel", **o)]
)
def test_masks_that_overlap(make):
    expected = value(make(), (LOGITS, TARGET))
    for options in ({}, {"class_dim": 1}):
        assert value(make(**options), (MASKS, TRUE_MASKS)) == expected
    last = MASKS.movedim(1, -1), TRUE_MASKS.movedim(1, -1)
    for options in ({}, {"class_dim": -1}):
        assert value(make(**options), last) == expected


def test_accuracy_of_masks_that_overlap():
    assert value(Accuracy(task="multilabel"), (MASKS, TRUE_MASKS)) == value(
        Accuracy(task="multilabel"), (LOGITS, TARGET)
    )
    expected = value(Accuracy(task="multilabel", exact_match=True), (LOGITS, TARGET))
    assert value(Accuracy(task="multilabel", exact_match=True, class_dim=1), (MASKS, TRUE_MASKS)) == expected
    with pytest.raises(ValueError, match=r"expected one dimension .* Pass class_dim=1 for \(N, C, \.\.\.\)"):
        Accuracy(task="multilabel", exact_match=True).update(MASKS, TRUE_MASKS)


def test_masked_labels_are_not_counted():
    generator = torch.Generator().manual_seed(1)
    kept = torch.rand(60, 5, generator=generator) < 0.7
    kept[:3] = False  # samples without any label that counts
    masked = torch.where(kept, TARGET, -1)
    columns = range(5)
    for metric, score in SCORES.items():
        expected = [score(TARGET[kept[:, c], c], LOGITS[kept[:, c], c] > 0) for c in columns]
        ours = value(metric(5, task="multilabel", average=None, ignore_index=-1), (LOGITS, masked))
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    for metric, score in CURVES.items():
        expected = [score(TARGET[kept[:, c], c], LOGITS[kept[:, c], c]) for c in columns]
        ours = value(metric(5, task="multilabel", average=None, ignore_index=-1), (LOGITS, masked))
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    is_right = (LOGITS > 0) == TARGET.bool()
    ours = value(Accuracy(task="multilabel", ignore_index=-1), (LOGITS, masked))
    assert float(ours) == pytest.approx(float(is_right[kept].double().mean()))
    rows = [bool(is_right[row][kept[row]].all()) for row in range(60) if kept[row].any()]
    ours = value(Accuracy(task="multilabel", exact_match=True, ignore_index=-1), (LOGITS, masked))
    assert float(ours) == pytest.approx(sum(rows) / len(rows))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Accuracy(task="multilabel"),
        lambda: F1(5, task="multilabel"),
        lambda: ConfusionMatrix(5, task="multilabel"),
        lambda: AUROC(5, task="multilabel"),
    ],
)
@pytest.mark.parametrize("wrong", [2, -1, 7])
def test_targets_that_are_not_0_or_1_are_reported(make, wrong):
    target = TARGET.clone()
    target[3, 1] = target[9, 4] = wrong
    metric = make()
    metric.update(LOGITS, target)
    with pytest.raises(ValueError, match=r"expected targets and predicted classes .*, got 2 outside\. Correct them"):
        metric.compute()


@pytest.mark.parametrize(
    ("make", "target", "message"),
    [
        (lambda: F1(5, task="multilabel"), TARGET[:, 0], r'shape \(N, C, \.\.\.\).* target \(60,\)\. .*task="multicl'),
        (lambda: Accuracy(task="multilabel"), TARGET[:, :4], r"output \(60, 5\) and target \(60, 4\)"),
        (lambda: AUROC(4, task="multilabel"), TARGET, r"expected 4 classes, got .* Pass num_classes=5"),
    ],
)
def test_shapes_that_do_not_fit(make, target, message):
    with pytest.raises(ValueError, match=message):
        make().update(LOGITS, target)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: F1(task="multilabel"), 'expected num_classes with task="multilabel", got None'),
        (lambda: AUROC(task="multilabel"), 'expected num_classes with task="multilabel", got None'),
        (lambda: Accuracy(5, task="multilabel"), 'expected topk=1 with task="multilabel", got'),
        (lambda: Accuracy(exact_match=True), 'with exact_match=True, got None. Pass task="multilabel"'),
        (lambda: BalancedAccuracy(5, task="multilabel"), 'for BalancedAccuracy, got "multilabel". Use Recall'),
        (lambda: F1(5, task="multi-label"), "expected task to be one of 'binary', 'multiclass', 'multilabel' or None"),
        (lambda: F1(5, task="binary"), 'expected 2 classes with task="binary", got num_classes=5'),
    ],
)
def test_arguments_that_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_labels_need_the_task_when_it_cannot_be_inferred():
    for metric in (Accuracy(), F1(5), ConfusionMatrix(5), AUROC(5), AveragePrecision(5), BalancedAccuracy(5)):
        metric.update(LOGITS, TARGET)
        with pytest.raises(
            ValueError, match=r"whose rows add up to 1, got \d+ other rows\. Pass task=\"multilabel\" if"
        ):
            metric.compute()
    for predicted in (LOGITS > 0, (LOGITS > 0).long()):
        with pytest.raises(ValueError, match=r'expected either predicted labels or .* Pass task="multilabel" if'):
            F1(5).update(predicted, TARGET)


@pytest.mark.parametrize("criterion", [nn.BCELoss(), nn.functional.binary_cross_entropy])
@pytest.mark.parametrize("kind", [Accuracy, F1])
def test_a_threshold_for_logits_is_refused_of_a_model_that_returns_probabilities(criterion, kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 1), nn.Sigmoid())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    match = (
        rf"expected {kind.__name__} to decide at 0.5, .* got threshold=0. Pass {kind.__name__}\(\.\.\., threshold=0.5"
    )
    with pytest.raises(ValueError, match=match):
        Runner(model, optimizer, criterion, [kind()])
    input, target = torch.randn(40, 3), torch.randint(2, (40, 1)).float()
    results = Runner(model, optimizer, criterion, [Accuracy(threshold=0.5)]).evaluate([(input, target)])
    assert results["val/Acc@1"] == float(((model(input) > 0.5) == target).double().mean())
    Runner(model[:1], optimizer, nn.BCEWithLogitsLoss(), [kind()])
