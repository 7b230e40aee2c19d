"""Output and target are read by their shapes, and bad targets are refused."""

import pytest
import torch
from classified import LOGITS, MAKERS, ROWS, TARGET, G, each_metric
from fit_metrics import AUROC, F1, Accuracy, Jaccard
from values import same, value


def mixed(target, share):
    """Soft rows, as Mixup makes them."""
    return share * target + (1 - share) * target.flip(0)


@each_metric
def test_one_hot_and_soft_rows_are_read_as_classes(make):
    expected = value(make(), (LOGITS, TARGET))
    smooth = 0.9 * ROWS + 0.1 / 6
    for rows in (ROWS, ROWS.bool(), ROWS.float(), mixed(ROWS, 0.8), smooth, smooth.half(), smooth.bfloat16()):
        same(value(make(), (LOGITS, rows)), expected)
        same(value(make(task="multiclass"), (LOGITS, rows)), expected)


@each_metric
def test_targets_in_a_column(make):
    same(value(make(), (LOGITS, TARGET[:, None])), value(make(), (LOGITS, TARGET)))


@each_metric
@pytest.mark.parametrize("bad", [torch.ones(6), torch.zeros(6), torch.full((6,), torch.nan), torch.arange(6) / 10])
def test_rows_that_do_not_add_up_to_1_are_reported(make, bad):
    rows = ROWS.float()
    rows[[3, 17]] = bad
    metric = make()
    metric.update(LOGITS[:20], rows[:20])
    metric.update(LOGITS[20:], rows[20:])
    with pytest.raises(ValueError, match=r'add up to 1, got 2 other rows\. Pass task="multilabel" .*task="multiclass"'):
        metric.compute()


@each_metric
def test_with_the_task_given_the_largest_entry_of_a_row_is_the_class(make):
    same(value(make(task="multiclass"), (LOGITS, 0.3 * ROWS)), value(make(), (LOGITS, TARGET)))


def test_ignored_rows_may_be_anything():
    rows = ROWS.float()
    rows[TARGET == 5] *= 2
    kept = TARGET != 5
    for make in MAKERS.values():
        same(value(make(ignore_index=5), (LOGITS, rows)), value(make(), (LOGITS[kept], TARGET[kept])))


@each_metric
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_class_indices_of_any_integer_dtype(make, dtype):
    same(value(make(), (LOGITS, TARGET.to(dtype))), value(make(), (LOGITS, TARGET)))


@each_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_floating_class_indices_are_refused(make, dtype):
    message = (
        rf"class indices of an integer dtype, got {dtype}: output \(40, 6\) and target \(40,\)\. Pass target\.long"
    )
    with pytest.raises(TypeError, match=message):
        make().update(LOGITS, TARGET.to(dtype))


@pytest.mark.parametrize("make", [lambda: Accuracy(), lambda: F1(6)])
def test_floating_class_indices_of_predicted_classes_are_refused(make):
    with pytest.raises(TypeError, match=r"class indices of an integer dtype, got torch\.float32"):
        make().update(LOGITS.argmax(1), TARGET.float())


@each_metric
@pytest.mark.parametrize("wrong", [-100, -1, 6, 255])
def test_class_indices_out_of_range_are_reported(make, wrong):
    target = TARGET.clone()
    target[[2, 30, 31]] = wrong
    metric = make()
    metric.update(LOGITS, target)
    with pytest.raises(ValueError, match=r"expected targets and predicted classes .*, got 3 outside\. .*ignore_index="):
        metric.compute()
    kept = target != wrong
    same(value(make(ignore_index=wrong), (LOGITS, target)), value(make(), (LOGITS[kept], TARGET[kept])))


def test_predicted_classes_out_of_range_are_reported():
    for metric, output, target in (
        (F1(6), TARGET + 1, TARGET),
        (Accuracy(), TARGET, TARGET - 1),  # A class is never negative.
        (F1(), TARGET, TARGET % 2),
    ):
        metric.update(output, target)
        with pytest.raises(ValueError, match=r"got \d+ outside"):
            metric.compute()


@pytest.mark.parametrize("make", [lambda **options: Accuracy(**options), lambda **options: F1(**options), AUROC])
def test_targets_of_a_single_logit_beyond_0_and_1_are_reported(make):
    logit = LOGITS[:, 0]
    for target in (TARGET, TARGET.float(), torch.full((40,), -0.5), torch.full((40,), torch.nan)):
        metric = make()
        metric.update(logit, target)
        with pytest.raises(ValueError, match=r"got \d+ outside"):
            metric.compute()
    soft = torch.rand(40, generator=G)
    same(value(make(), (logit, soft)), value(make(), (logit, (soft > 0.5).long())))


@each_metric
@pytest.mark.parametrize(
    ("output", "target", "message"),
    [
        (LOGITS, TARGET[:9], r"indices of shape \(40,\), or one-hot .* \(40, 6\), got output \(40, 6\) .* \(9,\)"),
        (LOGITS, LOGITS[:, :5], r"got output \(40, 6\) and target \(40, 5\)"),
        (LOGITS, ROWS[..., None], r"got output \(40, 6\) and target \(40, 6, 1\)"),
        (LOGITS, TARGET[None], r"got output \(40, 6\) and target \(1, 40\)"),
        (LOGITS, torch.tensor(1), r"got output \(40, 6\) and target \(\)"),
        (LOGITS[0, 0], TARGET[0], r"a dimension of samples, got output \(\) and target \(\)\. Pass output\[None\]"),
        (LOGITS[:, 0], TARGET[:9], r"expected a target of shape \(40,\), got output \(40,\) and target \(9,\)"),
        (LOGITS.view(4, 10, 6), TARGET.view(10, 4), r"\(4, 6\) or \(4, 10\), .*Pass class_dim= if another"),
    ],
)
def test_shapes_that_do_not_fit(make, output, target, message):
    with pytest.raises(ValueError, match=message):
        make().update(output, target)


@each_metric
def test_inputs_that_are_not_tensors_of_real_numbers(make):
    with pytest.raises(
        TypeError, match=r"expected the output to be a tensor, got dict\. Pick the tensor in a subclass"
    ):
        make().update({"logits": LOGITS}, TARGET)
    with pytest.raises(TypeError, match="expected the target to be a tensor, got list"):
        make().update(LOGITS, TARGET.tolist())
    with pytest.raises(TypeError, match=r"expected the output to be real, got torch\.complex64"):
        make().update(LOGITS.to(torch.complex64), TARGET)


def test_predictions_of_yes_and_no():
    predicted, target = LOGITS[:, 0] > 0, TARGET % 2
    for metric in (F1, Accuracy):
        expected = value(metric(), (LOGITS[:, 0], target))
        for output in (predicted, predicted.long()):
            same(value(metric(task="binary"), (output, target.float())), expected)
            same(value(metric(), (output, target)), expected)
        same(value(metric(), (predicted, target.float())), expected)


def test_overlapping_masks_are_not_read_as_classes():
    output, target = torch.randn(2, 3, 4, 5, generator=G), torch.randint(2, (2, 3, 4, 5), generator=G)
    metric = Jaccard(3)
    metric.update(output, target)
    with pytest.raises(ValueError, match='Pass task="multilabel"'):
        metric.compute()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"class_dim": 0}, ValueError, r"expected class_dim other than 0.*\. Pass 1 for .* or -1 for"),
        ({"class_dim": "last"}, TypeError, "expected class_dim to be a whole number, got 'last'"),
        ({"task": "classes"}, ValueError, "expected task to be one of 'binary', 'multiclass', 'multilabel' or None"),
    ],
)
@each_metric
def test_arguments_that_are_refused(make, options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


@pytest.mark.parametrize("class_dim", [2, -2])
def test_a_class_dim_that_the_output_does_not_have(class_dim):
    with pytest.raises(
        ValueError, match=rf"has class_dim={class_dim}, got output \(40, 6\) .* Pass a dimension in 1..1"
    ):
        Accuracy(class_dim=class_dim).update(LOGITS, TARGET)


def test_scores_of_one_class_are_not_multiclass():
    with pytest.raises(ValueError, match=r'has task="multiclass" and expected scores of 2 .* Pass task="binary"'):
        Accuracy(task="multiclass").update(LOGITS[:, :1], TARGET % 2)


def test_the_device_is_not_read_for_any_kind_of_target():
    shapes = [
        (LOGITS, ROWS),
        (LOGITS, ROWS.float()),
        (LOGITS.view(4, 10, 6), TARGET.view(4, 10)),
        (LOGITS[:, 0], ROWS[:, 0]),
    ]
    for output, target in shapes:
        metric = Accuracy().to("meta")
        for _ in range(17):  # also those that are counted together
            metric.update(output.to("meta"), target.to("meta"))
        assert metric.state_dict()["correct"].device.type == "meta"
