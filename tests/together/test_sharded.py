"""A model that the user has sharded with fully_shard trains in the Runner like any other."""

from functools import partial

import pytest
import torch
from fit_callbacks import (
    AdaptiveGradientClipping,
    GradientClipping,
    ModelEma,
    StopOnNonFinite,
)
from fit_core import Callback
from processes import on_two_processes
from sharded import loaders, needs_cpu_shards, network, runner, weights
from torch import nn

pytestmark = [pytest.mark.timeout(240), needs_cpu_shards]


class Reductions:
    """Counts the reductions of gradients meanwhile."""

    names = ("reduce_scatter_single", "reduce_scatter_tensor")  # of newer and of older torch

    def __enter__(self):
        self.count, self._before = 0, {}
        for name in self.names:
            if reduce := getattr(torch.distributed, name, None):
                self._before[name] = reduce
                setattr(torch.distributed, name, partial(self._counted, reduce))
        return self

    def _counted(self, reduce, *args, **kwargs):
        self.count += 1
        return reduce(*args, **kwargs)

    def __exit__(self, *error):
        for name, reduce in self._before.items():
            setattr(torch.distributed, name, reduce)


class Weigh(Callback):
    """Weighs each sample by its class, so that the batches of a window are uneven."""

    def on_batch_begin(self, state):
        state.weight = (1 + state.target).sum()


MADE = {
    "plain": list,
    "weights": lambda: [Weigh()],
    "norm": lambda: [GradientClipping(0.1)],
    "value": lambda: [GradientClipping(value=0.01)],
    "inf": lambda: [GradientClipping(0.1, norm_type=float("inf"))],
    "agc": lambda: [AdaptiveGradientClipping(0.1)],
    "average": lambda: [ModelEma(0.9)],
    "finite": lambda: [StopOnNonFinite()],
}
"""Callbacks that have to know about shards."""


def train(rank=0, accumulate_steps=1, name="plain"):
    train_loader, val_loader = loaders()
    callbacks = MADE[name]()
    run = runner(network(), *callbacks, accumulate_steps=accumulate_steps)
    if name == "weights":
        run.state.criterion = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        run.state.metrics.clear()  # The mean of an accuracy is over samples.
    with Reductions() as reductions:
        history = run.fit(train_loader, epochs=3, val_loader=val_loader)
    again = run.evaluate(val_loader)
    averages = [weights(callback.model) for callback in callbacks if isinstance(callback, ModelEma)]
    return [weights(run.state.model), *averages], [*history, again], reductions.count, run.state.global_step


TRAINED = [
    ("plain", 1),
    ("plain", 4),
    ("weights", 4),
    *((name, 1) for name in MADE if name not in ("plain", "weights")),
]


@pytest.mark.parametrize(("name", "accumulate_steps"), TRAINED)
def test_two_processes_equal_one(ranks, name, accumulate_steps):
    expected, history, _, steps = train(accumulate_steps=accumulate_steps, name=name)
    for modules, rows, reductions, their_steps in ranks["train", name, accumulate_steps]:
        for module, expected_module in zip(modules, expected, strict=True):
            for key, value in expected_module.items():
                torch.testing.assert_close(module[key], value, rtol=1e-12, atol=1e-12)
        for row, expected_row in zip(rows, history, strict=True):
            assert row == pytest.approx(expected_row, rel=1e-12)
        assert their_steps == steps
        assert reductions == 2 * steps  # of both groups of parameters, once per window


def test_an_open_window_leaves_nothing_to_the_next_run(ranks):
    assert ranks["stopped"] == (True, True)


class StopAt(Callback):
    def __init__(self, batch):
        self.batch = batch

    def on_batch_end(self, state):
        state.should_stop = state.is_train and state.batch_idx == self.batch


def stop_in_a_window(rank):
    """The gradients that FSDP keeps from a window are dropped when another run starts."""
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for stops in ([StopAt(1)], []):
        model.load_state_dict(before)
        run = runner(model, *stops, accumulate_steps=3)
        run.fit(loaders()[0])
        results.append(weights(model))
    gold = runner(network(), accumulate_steps=3)
    gold.fit(loaders()[0])
    return all(torch.equal(value, results[1][name]) for name, value in weights(gold.state.model).items())


def evaluate(rank, count):
    run = runner(network())
    loader = loaders(val_count=count)[1]
    try:
        return run.evaluate(loader), run.predict(loader)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("count", [2, 5, 9, 17])
def test_evaluation_counts_each_sample_once(ranks, count):
    expected, outputs = evaluate(0, count)
    results = ranks["evaluate", count]
    for rank, (result, predicted) in enumerate(results):
        assert result == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(predicted, outputs[rank::2])


def test_a_process_without_a_batch_is_refused(ranks):
    for message in ranks["evaluate", 1]:
        assert message.startswith("expected a batch on every process to run a sharded model, got none on 1 of 2")


def stop_validation(rank):
    """One process stops in validation, where the other has another batch."""

    class Stop(Callback):
        def on_batch_end(self, state):
            if rank == 0 and not state.is_train and state.batch_idx == 1:
                state.should_stop = True

    class Seen(Callback):
        count = 0

        def on_batch_end(self, state):
            self.count += not state.is_train

    run = runner(network(), Stop(), seen := Seen())
    train_loader, val_loader = loaders()
    history = run.fit(train_loader, epochs=3, val_loader=val_loader)
    return len(history), seen.count, run.state.status


def test_one_process_stops_in_validation(ranks):
    assert ranks["stop"] == ((1, 2, "interrupted"), (1, 2, "interrupted"))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of both ranks, by case."""
    cases = {("train", name, steps): partial(train, name=name, accumulate_steps=steps) for name, steps in TRAINED}
    cases |= {("evaluate", count): partial(evaluate, count=count) for count in (1, 2, 5, 9, 17)}
    cases |= {"stopped": stop_in_a_window, "stop": stop_validation}
    return on_two_processes(cases, tmp_path_factory.mktemp("ranks"))
