"""Top-k accuracy equals scikit-learn's, for inputs as people have them."""

import copy

import pytest
import torch
import torch.multiprocessing as mp
from fit_metrics import Accuracy
from sklearn.metrics import accuracy_score, top_k_accuracy_score

LOGITS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
TARGET = torch.randint(6, (40,), generator=torch.Generator().manual_seed(1))


def value(metric, *pairs):
    for output, target in pairs:
        metric.update(output, target)
    return float(metric.compute())


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_equals_scikit_learn_on_any_split(k, size):
    expected = top_k_accuracy_score(TARGET, LOGITS, k=k, labels=range(6))
    assert value(Accuracy(k), *zip(LOGITS.split(size), TARGET.split(size), strict=True)) == expected
    assert Accuracy(k).name == f"Acc@{k}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_halves_and_doubles(dtype):
    logits = LOGITS.to(dtype)
    assert value(Accuracy(2), (logits, TARGET)) == top_k_accuracy_score(TARGET, logits.double(), k=2, labels=range(6))


def test_targets_as_column_one_hot_and_soft():
    expected = accuracy_score(TARGET, LOGITS.argmax(1))
    one_hot = torch.nn.functional.one_hot(TARGET, 6)
    for target in (TARGET[:, None], one_hot, 0.9 * one_hot + 0.1 * torch.rand(40, 6)):
        assert value(Accuracy(1), (LOGITS, target)) == expected


def test_images_and_ignored_pixels():
    logits = LOGITS.reshape(2, 5, 4, 6).movedim(-1, 1)
    target = TARGET.reshape(2, 5, 4)
    assert value(Accuracy(1), (logits, target)) == accuracy_score(TARGET, LOGITS.argmax(1))
    kept = TARGET != 3
    assert value(Accuracy(1, ignore_index=3), (logits, target)) == accuracy_score(TARGET[kept], LOGITS[kept].argmax(1))


def test_a_single_logit():
    logit, target = LOGITS[:, 0], (TARGET > 2).long()
    expected = accuracy_score(target, logit > 0)
    assert value(Accuracy(1), (logit, target)) == expected
    assert value(Accuracy(1), (logit[:, None], target)) == expected
    assert value(Accuracy(1), (logit[:, None], target[:, None].float())) == expected
    assert value(Accuracy(1, threshold=0.5), (logit.sigmoid(), target)) == expected


def test_no_samples_are_nan_and_reset_forgets():
    metric = Accuracy(1)
    assert value(metric, (LOGITS, TARGET)) < 1
    metric.reset()
    assert torch.isnan(metric.compute())


def test_state_round_trip():
    metric, other = Accuracy(1), Accuracy(1)
    metric.update(LOGITS, TARGET)
    other.load_state_dict(metric.state_dict())
    metric.update(LOGITS, TARGET)  # the state was a copy
    assert int(other.samples) == 40
    assert float(other.compute()) == float(metric.compute())


def test_update_never_reads_a_value_back():
    metric = Accuracy(2, ignore_index=0).to("meta")  # where there are no values to read
    metric.update(LOGITS.to("meta"), TARGET.to("meta"))
    assert metric.correct.device.type == "meta"


@pytest.mark.parametrize(
    ("topk", "output", "target", "message"),
    [
        (7, LOGITS, TARGET, r"Acc@7 needs 7 classes, output \(40, 6\) has 6"),
        (1, LOGITS, TARGET[:9], r"target \(9,\) does not fit output \(40, 6\): expected class indices \(40,\)"),
        (2, LOGITS[:, 0], TARGET, "Acc@2 of a single logit"),
        (1, LOGITS[:, 0], TARGET[:9], r"output \(40,\) and target \(9,\) differ in their size"),
    ],
)
def test_shapes_that_do_not_fit(topk, output, target, message):
    with pytest.raises(ValueError, match=message):
        Accuracy(topk).update(output, target)


@pytest.mark.parametrize("topk", [0, -1, 1.5, True])
def test_topk_that_means_nothing(topk):
    with pytest.raises(ValueError, match="topk must be a whole number of 1 or more, got"):
        Accuracy(topk)


def test_a_metric_can_be_copied():
    metric = Accuracy(3)
    metric.update(LOGITS, TARGET)
    assert float(copy.deepcopy(metric).compute()) == float(metric.compute())


def _on_a_process(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    metric = Accuracy(2)
    if rank == 0:  # the other has seen nothing
        metric.update(LOGITS, TARGET)
    metric.all_reduce()
    torch.save(metric.compute(), f"{folder}/{rank}")
    torch.distributed.barrier()  # gloo aborts a process whose peer is gone before it has come to rest itself
    torch.distributed.destroy_process_group()


@pytest.mark.timeout(120)
def test_two_processes_one_of_them_without_a_batch(tmp_path):
    mp.spawn(_on_a_process, (tmp_path,), nprocs=2)
    values = [float(torch.load(tmp_path / str(rank), weights_only=True)) for rank in range(2)]
    assert values == [top_k_accuracy_score(TARGET, LOGITS, k=2, labels=range(6))] * 2


def test_counts_do_not_drift_over_many_samples():
    metric = Accuracy(1)
    output = torch.eye(2).repeat(50_000, 1)
    wrong_once = torch.arange(2).repeat(50_000)
    wrong_once[0] = 1
    for _ in range(200):  # twenty million samples: a float32 count would stop at 16.8 million
        metric.update(output, wrong_once)
    assert (int(metric.correct), int(metric.samples)) == (20_000_000 - 200, 20_000_000)
