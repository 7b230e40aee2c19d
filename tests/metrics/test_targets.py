"""Output and target are read by their shapes, the user is asked where two readings fit, and bad targets are refused."""

import pytest
import torch
from fit_metrics import AUROC, F1, Accuracy, AveragePrecision, BalancedAccuracy, ConfusionMatrix, Jaccard
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


def value(metric, *batches):
    for output, target in batches:
        metric.update(output, target)
    return metric.compute()


def same(value, expected):
    torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True)


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


# Tokens: (N, T, C) with targets (N, T).


@each_metric
@pytest.mark.parametrize("shape", [(4, 10), (10, 4), (1, 40), (40, 1), (2, 5, 4)])
def test_classes_in_the_last_or_the_second_dimension_are_found_by_shape(make, shape):
    expected = value(make(), (LOGITS, TARGET))
    last, target = LOGITS.view(*shape, 6), TARGET.view(shape)
    second = last.movedim(-1, 1)
    for options in ({}, {"task": "multiclass"}):
        same(value(make(**options), (last, target)), expected)
        same(value(make(**options), (second, target)), expected)
    for target in (TARGET.view(shape), TARGET.view(*shape, 1)):
        same(value(make(class_dim=-1), (last, target)), expected)
        same(value(make(class_dim=len(shape)), (last, target)), expected)
    for target in (TARGET.view(shape), TARGET.view(*shape, 1).movedim(-1, 1)):
        same(value(make(class_dim=1), (second, target)), expected)


SQUARE = LOGITS[:36].view(6, 6, 6), TARGET[:36].view(6, 6)  # (N, T, C) with T = C


@each_metric
def test_as_many_tokens_as_classes_need_class_dim(make):
    message = r"expected one dimension .* \(6, 6, 6\) and target \(6, 6\)\. Pass class_dim=1 for .* class_dim=-1"
    with pytest.raises(ValueError, match=message):
        make().update(*SQUARE)
    expected = value(make(), (LOGITS[:36], TARGET[:36]))
    same(value(make(class_dim=-1), SQUARE), expected)
    same(value(make(class_dim=2), SQUARE), expected)
    same(value(make(class_dim=1), (SQUARE[0].mT, SQUARE[1])), expected)


@each_metric
def test_as_many_tokens_as_classes_are_read_like_the_batches_before(make):
    rest = LOGITS[36:].view(1, 4, 6), TARGET[36:].view(1, 4)
    expected = value(make(), (LOGITS[36:], TARGET[36:]), (LOGITS[:36], TARGET[:36]))
    same(value(make(), rest, SQUARE), expected)
    same(value(make(), (rest[0].mT, rest[1]), (SQUARE[0].mT, SQUARE[1])), expected)
    metric = make()
    metric.update(*rest)
    metric.reset()  # The model is the same in the next epoch.
    same(value(metric, SQUARE), value(make(), (LOGITS[:36], TARGET[:36])))


@each_metric
def test_padding_of_tokens_is_ignored(make):
    target = TARGET.view(4, 10).clone()
    target[:, 7:] = -100
    kept = target.flatten() != -100
    expected = value(make(), (LOGITS[kept], TARGET[kept]))
    same(value(make(ignore_index=-100), (LOGITS.view(4, 10, 6), target)), expected)


def test_one_hot_rows_of_tokens():
    rows = ROWS.view(4, 10, 6)
    expected = value(F1(6), (LOGITS, TARGET))
    for output, target in ((LOGITS.view(4, 10, 6), rows), (LOGITS.view(4, 10, 6).mT, rows.mT)):
        same(value(F1(6), (output, target)), expected)  # num_classes shows where they are
    with pytest.raises(ValueError, match="expected one dimension of the output that can be the classes"):
        Accuracy().update(LOGITS.view(4, 10, 6), rows)
    expected = value(Accuracy(), (LOGITS, TARGET))
    same(value(Accuracy(class_dim=-1), (LOGITS.view(4, 10, 6), rows)), expected)


def test_one_hot_rows_of_a_single_token_are_not_single_logits():
    rest = LOGITS[:10].view(1, 10, 6), TARGET[:10].view(1, 10)
    single = LOGITS[10:].view(30, 1, 6), ROWS[10:].view(30, 1, 6)
    expected = value(Accuracy(), (LOGITS, TARGET))
    same(value(Accuracy(), rest, single), expected)  # The first batch shows where the classes are.
    same(value(Accuracy(class_dim=-1), rest, single), expected)
    same(value(Accuracy(class_dim=-1), single), value(Accuracy(), (LOGITS[10:], TARGET[10:])))


@pytest.mark.parametrize("options", [{}, {"task": "multilabel"}])
def test_another_number_of_classes_in_each_dimension(options):
    with pytest.raises(ValueError, match=r"F1 expected 9 classes, got output \(4, 10, 6\) .* Pass num_classes=10"):
        F1(9, **options).update(LOGITS.view(4, 10, 6), ROWS.view(4, 10, 6))


def test_a_single_logit_for_each_token_or_pixel():
    logit, target = LOGITS[:, 0], TARGET % 2
    expected = value(F1(), (logit, target))
    tokens, true = logit.view(4, 10), target.view(4, 10)
    for output, binary in (
        (tokens[:, None], true),
        (tokens[:, None], true[:, None]),
        (tokens[..., None], true),
        (tokens.view(4, 1, 2, 5), true.view(4, 1, 2, 5)),
        (tokens.view(4, 1, 2, 5), true.view(4, 2, 5)),
        (tokens.view(4, 1, 5, 2), true.view(4, 1, 5, 2).float()),
    ):
        same(value(F1(), (output, binary)), expected)
        same(value(F1(task="binary"), (output, binary)), expected)
    same(value(F1(task="binary"), (tokens, true)), expected)
    same(value(F1(task="binary"), (tokens[..., None], true[..., None])), expected)


def test_a_logit_for_each_token_is_not_scored_as_classes():
    tokens, target = LOGITS[:, 0].view(4, 10), (TARGET % 2).view(4, 10)
    metric = Accuracy()
    metric.update(tokens, target)
    with pytest.raises(ValueError, match=r'task="binary" if every entry of the output is a single logit'):
        metric.compute()
    same(value(Accuracy(task="binary"), (tokens, target)), value(Accuracy(), (tokens.flatten(), target.flatten())))
    with pytest.raises(
        ValueError, match=r"F1 expected 2 classes, got output \(4, 10\) and target \(4, 10\)\. .*multil"
    ):
        F1().update(tokens, target)


def test_predicted_tokens():
    predicted = LOGITS.argmax(1)
    for metric, expected in ((F1(6), F1(6)), (Accuracy(), Accuracy())):
        ours = value(metric, (predicted.view(4, 10), TARGET.view(4, 10)))
        same(ours, value(expected, (LOGITS, TARGET)))
    square = predicted[:36].view(6, 6), TARGET[:36].view(6, 6)
    with pytest.raises(ValueError, match="expected either predicted labels or predicted classes"):
        F1(6).update(*square)
    same(value(F1(6, task="multiclass"), square), value(F1(6), (LOGITS[:36], TARGET[:36])))


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
