"""Classes, labels and logits of tokens: read by their shapes, and the user is asked where two readings fit."""

import pytest
from classified import LOGITS, ROWS, TARGET, each_metric
from fit_metrics import F1, Accuracy
from values import same, value

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
