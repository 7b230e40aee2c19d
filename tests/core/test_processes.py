"""Two real processes with gloo: sums over both, the same steps on both, and no hang where they differ."""

import importlib.util
from functools import partial

import pytest
import torch
from distributed_run import network, runner, samples, split
from fit_core import Callback
from processes import on_two_processes
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.timeout(120)


CASES = [(count, batch) for count in (1, 2, 3, 5, 17, 103) for batch in (1, 8)]


def evaluate(rank):
    return [runner(network()).evaluate(split(*case, rank, 2)) for case in CASES]


def test_evaluation_counts_each_sample_once(ranks):
    results = ranks["evaluate"]
    assert results[0] == results[1]
    for (count, batch), result in zip(CASES, results[0], strict=True):
        alone = runner(network()).evaluate(split(count, batch))
        inputs, targets = samples(count)
        hits = int((network()(inputs).argmax(1) == targets).sum())
        assert round(result["val/accuracy"] * count, 9) == hits
        assert result["val/loss"] == pytest.approx(alone["val/loss"], rel=1e-12)


def train(rank, accumulate_steps):
    model = DistributedDataParallel(network())
    reductions = []

    def count(state, bucket):
        reductions.append(1)
        return allreduce_hook(None, bucket)

    model.register_comm_hook(None, count)
    run = runner(model, accumulate_steps=accumulate_steps)
    # The global batch of 8 samples is two batches of 4; its last, of 4, two of 2.
    batches = [
        (x[rank * len(x) // 2 :][: len(x) // 2], y[rank * len(y) // 2 :][: len(y) // 2]) for x, y in split(44, 8)
    ]
    history = run.fit(batches, epochs=2)
    state = run.state
    return state.state_dict()["model"], history, len(reductions), (state.rank, state.world_size, state.samples_seen)


@pytest.mark.parametrize("accumulate_steps", [1, 4])
def test_two_processes_equal_one_with_the_same_global_batch(ranks, accumulate_steps):
    results = ranks["train", accumulate_steps]
    alone = runner(network(), accumulate_steps=accumulate_steps)
    history = alone.fit(split(44, 8), epochs=2)
    for rank, (model, their_history, reductions, counters) in enumerate(results):
        for name, value in alone.state.model.state_dict().items():
            torch.testing.assert_close(model[name], value, rtol=1e-12, atol=1e-12)
        for row, expected in zip(their_history, history, strict=True):
            assert row == pytest.approx(expected, rel=1e-12)
        assert reductions == alone.state.global_step  # one bucket a step: no_sync in between
        assert counters == (rank, 2, 88)


class SamplesSeen(Callback):
    def __init__(self):
        self.seen = []

    def on_checkpoint(self, state):
        self.seen.append(state.samples_seen)
        if len(self.seen) == 5:  # inside the second epoch
            self.saved = state.state_dict()
            ranks = [None] * state.world_size
            torch.distributed.all_gather_object(ranks, self.saved["ranks"][0])
            self.saved["ranks"] = ranks


def count_samples(rank):
    sizes = [[3, 1], [2, 2], [4, 1]]
    batches = [(torch.ones(size[rank], 4, dtype=torch.float64), torch.zeros(size[rank]).long()) for size in sizes]
    seen, again = SamplesSeen(), SamplesSeen()
    for callback, saved in ((seen, None), (again, lambda: seen.saved)):
        run = runner(DistributedDataParallel(network()))
        run.state.callbacks.append(callback)
        if saved:
            run.state.load_state_dict(saved())
        run.fit(batches, epochs=2, val_loader=batches[:1])
    return seen.seen, again.seen, run.state.samples_seen


def test_samples_are_counted_exactly_at_the_end_of_each_epoch(ranks):
    (first, resumed, total), (other, *_) = ranks["samples"]
    assert (first[3], first[-1], total) == (13, 26, 26)
    assert (other[3], other[-1]) == (13, 26)
    assert resumed == first[5:]


def unequal(rank, lengths):
    ended = []

    class End(Callback):
        def on_batch_begin(self, state):
            ended.append(state.batch_idx)

    try:
        run = runner(DistributedDataParallel(network()))
        run.state.callbacks.append(End())
        run.fit(split(44, 8)[: lengths[rank]])
    except ValueError as error:
        return [str(error), len(ended)]
    return ["trained", len(ended)]


LENGTHS = {(3, 2): "rank 0: 3, rank 1: 2", (3, 0): "rank 0: 3, rank 1: 0"}


@pytest.mark.parametrize(("lengths", "said"), LENGTHS.items())
def test_training_loaders_of_unequal_length_are_refused_before_the_first_step(ranks, lengths, said):
    for message, steps in ranks["unequal", lengths]:
        assert f"as many training batches on every process, got {said}," in message
        assert steps == 0


class Local:
    def reset(self):
        self.value = 0

    def update(self, output, target):
        self.value += len(target)

    def compute(self):
        return self.value


def metrics(rank):
    import warnings

    import torchmetrics

    theirs = torchmetrics.classification.MulticlassAccuracy(3, average="micro")
    run = runner(network())
    run.state.metrics += [theirs, Local()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run.evaluate(split(17, 4, rank, 2))
    return result, [str(warning.message) for warning in caught if "summed" in str(warning.message)]


def test_torchmetrics_synchronise_themselves_and_a_local_metric_is_named(ranks):
    pytest.importorskip("torchmetrics")
    results = ranks["torchmetrics"]
    for result, warned in results:
        assert result["val/MulticlassAccuracy"] == pytest.approx(result["val/accuracy"], abs=1e-6)
        assert len(warned) == 1
        assert "Local cannot be summed over processes" in warned[0]
    assert [result["val/Local"] for result, _ in results] == [9.0, 8.0]


def one_without_a_batch(rank):
    from torchmetrics import MetricCollection, classification

    def evaluate(metric):
        run = runner(network())
        run.state.metrics[:] = [metric]
        return run.evaluate([] if rank else split(5, 5))

    same = [classification.MulticlassAccuracy(3, average="micro"), classification.MulticlassF1Score(3)]
    results, errors = evaluate(MetricCollection(same)), []
    for other in (classification.MulticlassAUROC(3), MetricCollection([classification.MulticlassAveragePrecision(3)])):
        try:
            evaluate(other)
        except ValueError as error:
            errors.append(str(error))
    return results, errors


def test_torchmetrics_that_cannot_synchronise_without_a_batch_are_refused_on_both(ranks):
    pytest.importorskip("torchmetrics")
    (results, errors), other = ranks["one without a batch"]
    assert other == (results, errors)
    inputs, targets = samples(5)
    expected = (network()(inputs).argmax(1) == targets).double().mean().item()
    assert results["val/MulticlassAccuracy"] == pytest.approx(expected, abs=1e-6)
    assert errors == [
        f"expected a batch of the val loader on every process for {name} of torchmetrics, got none on rank 1. It can "
        "exchange its states only after a batch. Evaluate more samples, on fewer processes, or use a metric of "
        "fit_metrics"
        for name in ("MulticlassAUROC", "MulticlassAveragePrecision")
    ]


def resume(rank, folder):
    class Save(Callback):
        def on_checkpoint(self, state):
            if state.global_step == 3:
                torch.save(state.state_dict(), f"{folder}/state{rank}")

    def run(saved):
        torch.manual_seed(rank)
        made = runner(DistributedDataParallel(nn.Sequential(network(), nn.Dropout(0.2))))
        made.state.callbacks.append(Save())
        if saved:
            state, other = (torch.load(f"{folder}/state{owner}", weights_only=True) for owner in (rank, 1 - rank))
            state["ranks"] = [state, other][rank]["ranks"] + [other, state][rank]["ranks"]
            made.state.load_state_dict(state)
        made.fit(split(44, 4, rank, 2), epochs=2)
        return made.state.state_dict()["model"]

    gold = run(saved=False)
    torch.distributed.barrier()
    again = run(saved=True)
    return all(torch.equal(value, again[name]) for name, value in gold.items())


def test_two_processes_with_random_numbers_of_their_own_resume_with_the_same_bits(ranks):
    assert ranks["resume"] == (True, True)


def test_rank_and_size_come_from_the_environment_when_a_run_starts(monkeypatch):
    run = runner(network())
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    run.fit(split(4, 2))
    assert (run.state.rank, run.state.world_size) == (1, 3)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of both ranks, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = {
        "evaluate": evaluate,
        **{("train", steps): partial(train, accumulate_steps=steps) for steps in (1, 4)},
        **{("unequal", lengths): partial(unequal, lengths=lengths) for lengths in LENGTHS},
        "samples": count_samples,
        "resume": partial(resume, folder=str(folder)),
    }
    if importlib.util.find_spec("torchmetrics"):
        cases |= {"torchmetrics": metrics, "one without a batch": one_without_a_batch}
    return on_two_processes(cases, folder)
