"""should_stop ends a run, on two real processes after the same batch, and does not shorten an evaluation."""

import weakref

import pytest
import torch
from distributed_run import network, runner, split
from fit_core import Callback, close_group
from fit_core.stopping import may_stop
from processes import on_two_processes
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.timeout(120)


class StopAt(Callback):
    """Set should_stop on one rank, in one hook, once."""

    def __init__(self, hook, rank=1, batch=3, status=None):
        self.rank, self.batch, self.status = rank, batch, status
        setattr(self, hook, self.set)

    def set(self, state):
        if state.rank == self.rank and state.batch_idx == self.batch:
            state.should_stop = True
            if self.status:
                state.status = self.status


class InBatches(StopAt):
    def on_batch_end(self, state):
        """Replaced."""


class InEpochs(StopAt):
    def on_loader_begin(self, state):
        """Replaced."""

    def on_loader_end(self, state):
        """Replaced."""


def train(rank, kind, hook, setter, batch, everywhere, status=None):
    model = DistributedDataParallel(network())
    data = [(torch.ones(2, 4, dtype=torch.float64) * k, torch.tensor([0, 1])) for k in range(6)]
    callbacks = [kind(hook, setter, batch, status)] if everywhere or rank == setter else []
    fit = runner(model, callbacks=callbacks)
    history = fit.fit(data, epochs=4, val_loader=data[: 2 + 3 * rank])
    return fit.state.global_step, fit.state.epoch, len(history), fit.state.status


CASES = {
    (InBatches, "on_batch_end", 1, 3, False): (4, 0, 1, "interrupted"),
    (InBatches, "on_batch_end", 0, 5, True): (6, 0, 1, "interrupted"),
    (InEpochs, "on_loader_end", 1, 5, False): (6, 1, 1, "finished"),
    (InEpochs, "on_loader_end", 0, 5, True, "interrupted"): (6, 1, 1, "interrupted"),
}


def train_all(rank):
    return [train(rank, *case) for case in CASES]


def test_both_processes_stop_after_the_same_batch(ranks):
    assert ranks["training"] == (list(CASES.values()),) * 2


class StopInValidation(Callback):
    def on_batch_end(self, state):
        state.should_stop = state.should_stop or (not state.is_train and state.rank == 1 and state.epoch == 1)


def validate(rank):
    model = DistributedDataParallel(network())
    data = [(torch.ones(2, 4, dtype=torch.float64) * k, torch.tensor([0, 1])) for k in range(3)]
    fit = runner(model, callbacks=[StopInValidation()])
    history = fit.fit(data, epochs=4, val_loader=data[: 2 - rank])  # unequally many batches
    alone = runner(network(), callbacks=[StopInValidation()])
    alone.state.epoch = 1
    return len(history), fit.state.status, sorted(history[-1]), list(alone.evaluate(data[: 2 - rank]))


def test_a_stop_in_validation_of_one_process_leaves_the_validation_incomplete_on_all(ranks):
    names = ["epoch", "lr", "stopped_after_batch", "train/accuracy", "train/loss"]
    expected = (2, "interrupted", names, ["val/loss", "val/accuracy"])
    assert ranks["validation"] == (expected, expected)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of both ranks, by case."""
    return on_two_processes({"training": train_all, "validation": validate}, tmp_path_factory.mktemp("ranks"))


class AfterTwo(Callback):
    """Stop after two steps, as a time limit does. It is called in evaluations too."""

    def on_batch_end(self, state):
        state.should_stop = state.global_step >= 2


def test_evaluate_and_predict_use_all_batches_when_a_callback_asks_to_stop():
    model, data, inside = network(), split(7, 2), []

    class Measure(Callback):
        def on_batch_end(self, state):
            if state.is_train:
                inside.append((state.should_stop, *measure()))

    def measure():
        with torch.no_grad():
            outputs = torch.cat([model(input) for input, _ in data])
        loss = torch.nn.functional.cross_entropy(outputs, torch.cat([target for _, target in data]))
        close = pytest.approx(loss.item(), rel=1e-12)
        return fit.evaluate(data, name="test").get("test/loss") == close, torch.equal(fit.predict(data), outputs)

    fit = runner(model, callbacks=[AfterTwo(), Measure()])
    assert fit.fit(data, epochs=2)[-1]["stopped_after_batch"] == 2
    assert inside == [(False, True, True), (True, True, True)]
    assert measure() == (True, True)


def test_only_callbacks_whose_code_sets_should_stop_vote():
    class Direct(Callback):
        def on_batch_end(self, state):
            self.decide(state)

        def decide(self, state):
            state.should_stop = True

    class ByName(Callback):
        def on_batch_end(self, state):
            setattr(state, "should_stop", True)  # noqa: B010

    class Nested(Callback):
        @staticmethod
        def on_epoch_end(state):
            return [lambda: state.should_stop for _ in range(1)]

    class Given(Callback):
        def __init__(self, function):
            self.function = function

    class Together(Direct):
        stops_together = True

    class Inherited(Direct):
        pass

    def stop(state):
        state.should_stop = True

    assert all(map(may_stop, (Direct(), ByName(), Inherited(), Given(stop))))
    assert not any(map(may_stop, (Callback(), Together(), Given(print))))


def test_a_group_is_freed_when_its_threads_have_nothing_left_to_free(monkeypatch):
    """In torch 2.6 both waited for each other otherwise, at the end of some runs."""
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda group: None)
    made = [set() for _ in range(5)]
    groups = [weakref.ref(group) for group in made]
    while made:
        assert all(group() is not None for group in groups)
        close_group(made.pop(0))
    assert [group() is None for group in groups] == [True, False, False, False, False]
