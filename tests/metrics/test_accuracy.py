"""Top-k accuracy equals scikit-learn's, for the inputs that people have."""

import pytest
import torch
from fit_metrics import Accuracy
from sklearn.metrics import accuracy_score, top_k_accuracy_score
from torch.utils._python_dispatch import TorchDispatchMode
from values import number, value

LOGITS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
TARGET = torch.randint(6, (40,), generator=torch.Generator().manual_seed(1))


def top_k(k, logits=LOGITS, target=TARGET):
    return top_k_accuracy_score(target, logits, k=k, labels=range(6))


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_equals_scikit_learn_on_any_split(k, size):
    assert number(Accuracy(k), *zip(LOGITS.split(size), TARGET.split(size), strict=True)) == top_k(k)
    assert Accuracy(k).name == f"Acc@{k}"


@pytest.mark.parametrize("size", [1, 7, 40])
@pytest.mark.parametrize("several", [(1, 5), (5, 1), (2, 3, 4)])
def test_several_k_at_once(several, size):
    metric = Accuracy(*several)
    for output, target in zip(LOGITS.split(size), TARGET.split(size), strict=True):
        metric.update(output, target)
    assert list(metric.compute()) == [f"Acc@{k}" for k in several]
    assert {name: float(share) for name, share in metric.compute().items()} == {f"Acc@{k}": top_k(k) for k in several}


def test_several_k_without_samples_and_by_another_name():
    metric = Accuracy(1, 5)
    assert metric.name == "Acc"
    assert all(share.isnan() for share in metric.compute().values())
    metric.name = "ema"
    assert list(metric.compute()) == ["ema@1", "ema@5"]
    assert list(Accuracy(1, 3, name="top").compute()) == ["top@1", "top@3"]


def test_several_k_and_ignored_targets():
    metric, kept = Accuracy(1, 2, ignore_index=3), TARGET != 3
    metric.update(LOGITS, TARGET)
    expected = {f"Acc@{k}": number(Accuracy(k), (LOGITS[kept], TARGET[kept])) for k in (1, 2)}
    assert {name: float(share) for name, share in metric.compute().items()} == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_halves_and_doubles(dtype):
    logits = LOGITS.to(dtype)
    assert number(Accuracy(2), (logits, TARGET)) == top_k(2, logits.double())


def test_images_and_ignored_pixels():
    logits = LOGITS.reshape(2, 5, 4, 6).movedim(-1, 1)
    target = TARGET.reshape(2, 5, 4)
    assert number(Accuracy(1), (logits, target)) == accuracy_score(TARGET, LOGITS.argmax(1))
    kept = TARGET != 3
    assert number(Accuracy(1, ignore_index=3), (logits, target)) == accuracy_score(TARGET[kept], LOGITS[kept].argmax(1))


def test_a_single_logit():
    logit, target = LOGITS[:, 0], (TARGET > 2).long()
    expected = accuracy_score(target, logit > 0)
    assert number(Accuracy(1), (logit, target)) == expected
    assert number(Accuracy(1), (logit[:, None], target)) == expected
    assert number(Accuracy(1), (logit[:, None], target[:, None].float())) == expected
    assert number(Accuracy(1, threshold=0.5), (logit.sigmoid(), target)) == expected


def test_no_samples_are_nan_and_reset_forgets():
    metric = Accuracy(1)
    assert number(metric, (LOGITS, TARGET)) < 1
    metric.reset()
    assert torch.isnan(metric.compute())


@pytest.mark.parametrize(
    ("topk", "output", "message"),
    [
        ((7,), LOGITS, r"Acc@7: top-7 accuracy needs scores of 7 or more classes, got output \(40, 6\)"),
        ((1, 7), LOGITS, r"Acc: top-7 accuracy needs scores of 7 or more classes, got output \(40, 6\)"),
        ((2,), LOGITS[:, 0], r"Acc@2: top-2 accuracy needs scores of 2 or more classes, got output \(40,\)"),
    ],
)
def test_more_guesses_than_classes(topk, output, message):
    with pytest.raises(ValueError, match=message):
        Accuracy(*topk).update(output, TARGET)


@pytest.mark.parametrize(
    ("topk", "error", "message"),
    [
        ((0,), ValueError, "expected topk to be 1 or more, got 0"),
        ((1, -1), ValueError, "expected topk to be 1 or more, got -1"),
        ((1.5,), TypeError, r"expected topk to be a whole number, got 1\.5"),
        ((True,), TypeError, "expected topk to be a whole number, got True"),
        (([1, 5],), TypeError, r"expected topk to be a whole number, got \[1, 5\]. Write Accuracy\(1, 5\)"),
        ((5, 5), ValueError, r"expected each k once, got \(5, 5\)"),
    ],
)
def test_topk_that_is_not_a_number_of_guesses(topk, error, message):
    with pytest.raises(error, match=message):
        Accuracy(*topk)


def test_of_equal_scores_the_first_counts_as_the_more_likely():
    scores = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    for sample, rank in enumerate([0, 1, 3, 2]):
        target = torch.tensor([sample])
        for k in (1, 2, 3):
            assert number(Accuracy(k), (scores, target)) == (rank < k)
        several = Accuracy(1, 2, 3)
        several.update(scores, target)
        assert [bool(share) for share in several.compute().values()] == [rank < k for k in (1, 2, 3)]


def test_scores_of_nan_are_wrong_for_every_k():
    scores, target = torch.full((8, 10), torch.nan), torch.arange(8)
    assert number(Accuracy(5), (scores, target)) == 0
    assert [float(share) for share in value(Accuracy(1, 5), (scores, target)).values()] == [0, 0]
    of_another_class = torch.tensor([[torch.nan, 1.0, 2.0]]), torch.tensor([2])  # nan is the largest, as in argmax
    assert [float(share) for share in value(Accuracy(1, 2), of_another_class).values()] == [0, 1]


class Orders(TorchDispatchMode):
    """Counts the operations over all scores that find an order in them."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in ("argmax", "topk", "sort", "gather")
        return function(*args, **(kwargs or {}))


def test_several_k_rank_a_batch_once():
    metric = Accuracy(1, 2, 5)
    with Orders() as orders:
        metric.update(LOGITS, TARGET)
    assert orders.count == 1


def test_small_batches_are_counted_together():
    metric = Accuracy(2)
    with Orders() as orders:
        for _ in range(3):
            for output, target in zip(LOGITS.split(1), TARGET.split(1), strict=True):
                metric.update(output, target)
        assert float(metric.compute()) == top_k(2)
    assert orders.count == 1 + 8  # the first of its kind alone, the 119 others in sixteens
    assert int(metric.samples) == 120


def test_a_small_batch_may_be_changed_or_freed_after_update():
    metric = Accuracy(1)
    output, target = torch.empty(4, 6, requires_grad=True), torch.empty(4, dtype=torch.long)
    for scores, classes in zip(LOGITS.split(4), TARGET.split(4), strict=True):
        with torch.no_grad():  # one place in memory for all batches, as in a captured graph
            output.copy_(scores)
        target.copy_(classes)
        metric.update(output, target)
    assert not any(kept.requires_grad for pair in metric._waiting for kept in pair)
    assert float(metric.compute()) == accuracy_score(TARGET, LOGITS.argmax(1))


def test_waiting_batches_are_in_the_state_and_forgotten_by_reset():
    metric, other = Accuracy(1), Accuracy(1)
    for output, target in zip(LOGITS.split(10), TARGET.split(10), strict=True):
        metric.update(output, target)
    other.load_state_dict(metric.state_dict())
    assert float(other.compute()) == accuracy_score(TARGET, LOGITS.argmax(1))
    metric.update(LOGITS[:10], TARGET[:10])
    metric.reset()
    assert number(metric, (LOGITS[:10], TARGET[:10])) == accuracy_score(TARGET[:10], LOGITS[:10].argmax(1))


def test_a_bad_batch_is_refused_at_once_among_small_ones():
    metric = Accuracy(1)
    for _ in range(3):
        metric.update(LOGITS, TARGET)
    with pytest.raises(ValueError, match=r"expected class indices of shape \(40,\)"):
        metric.update(LOGITS, TARGET[:7])
    assert int(metric.state_dict()["samples"]) == 120  # nothing is lost
    metric.update(LOGITS, TARGET + 6)
    with pytest.raises(
        ValueError, match="expected targets and predicted classes among the classes of the output, got 40 outside"
    ):
        metric.compute()


def test_a_batch_that_was_changed_in_place_is_ranked_again():
    output, target = LOGITS.clone(), TARGET.clone()
    first = number(Accuracy(2), (output, target))
    output.neg_()
    assert number(Accuracy(2), (output, target)) == top_k(2, -LOGITS) != first


def test_counts_do_not_drift_over_many_samples():
    metric = Accuracy(1)
    output = torch.eye(2).repeat(50_000, 1)
    wrong_once = torch.arange(2).repeat(50_000)
    wrong_once[0] = 1
    for _ in range(200):  # twenty million samples: a float32 count would stop at 16.8 million
        metric.update(output, wrong_once)
    assert (int(metric.correct), int(metric.samples)) == (20_000_000 - 200, 20_000_000)


def test_the_names_are_those_of_the_values():
    several = Accuracy(1, 2)
    several.update(torch.eye(3), torch.arange(3))
    assert several.names == list(several.compute()) == ["Acc@1", "Acc@2"]
    assert Accuracy(5).names == ["Acc@5"]
