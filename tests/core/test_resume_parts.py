"""Parts of a run that are easily lost on the way to a file: workers, buffers of each process, metrics."""

import io
import random
import warnings
from functools import partial

import numpy
import pytest
import torch
from classifier import Stateful, loaders
from classifier import make as make_classifier
from fit_core import Callback, Runner
from fit_core.random_state import get_random_state, packed, set_random_state
from processes import on_two_processes
from scene import Snapshots, load
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset


class Order(Callback):
    def __init__(self):
        self.seen = []

    def on_batch_end(self, state):
        self.seen.extend(state.input.flatten().tolist())


def run(loader, *callbacks, saved=None):
    torch.manual_seed(0)
    model, order = nn.Linear(1, 1), Order()
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), [], [order, *callbacks])
    if saved is not None:
        torch.manual_seed(1)
        runner.state.load_state_dict(load(saved))
    runner.fit(loader, epochs=3)
    return order.seen


def persistent():
    numbers = torch.linspace(0, 1, 6).view(6, 1)
    return DataLoader(
        TensorDataset(numbers, numbers), batch_size=2, shuffle=True, num_workers=1, persistent_workers=True
    )


def test_persistent_workers_keep_the_order_and_are_named():
    save = Snapshots()
    gold = run(persistent(), save)
    for number in (0, 2, 3, 5, 7):
        done = 2 * (number + 1 - (number + 1) // 4)  # each fourth state is one between epochs
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert run(persistent(), saved=save.saved[number]) == gold[done:]
        named = [str(warning.message) for warning in caught if "persistent_workers=False" in str(warning.message)]
        assert len(named) == (number >= 2)  # inside the first pass, their seeds are those of its start


def test_the_order_returns_in_the_process_that_has_the_workers():
    save, loader = Snapshots(), persistent()
    gold = run(loader, save)
    with pytest.warns(UserWarning, match="persistent_workers=False"):
        assert run(loader, saved=save.saved[5]) == gold[10:]


class FromTorchdata(Stateful):
    """A loader that returns to its place, but not to the random numbers of its workers."""

    num_workers = 2


FromTorchdata.__module__ = "torchdata.stateful_dataloader"


def test_the_workers_of_torchdata_are_named_once():
    save = Snapshots()
    make_classifier([save]).fit(FromTorchdata())
    runner = make_classifier()
    runner.state.load_state_dict(load(save.saved[1]))
    with pytest.warns(UserWarning, match="FromTorchdata restores") as caught:
        runner.fit(FromTorchdata(), epochs=3)
    warned = [str(warning.message) for warning in caught if "FromTorchdata" in str(warning.message)]
    assert len(warned) == 1
    assert warned[0].startswith("FromTorchdata restores the order, but not the random numbers of its workers. ")


class Scores:
    """A metric that keeps all it has seen."""

    def __init__(self):
        self.scores = torch.empty(0)

    def reset(self):
        self.scores = torch.empty(0)

    def update(self, output, target):
        self.scores = torch.cat([self.scores, output.detach().flatten()])

    def compute(self):
        return self.scores.mean()

    def state_dict(self):
        return {"scores": self.scores}

    def load_state_dict(self, state_dict):
        self.scores = state_dict["scores"]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_evaluation_before_the_rest_of_an_epoch_leaves_its_metrics_alone(processes):
    class Evaluate(Callback):
        def on_epoch_begin(self, state):
            runner.evaluate([(torch.ones(2, 1), torch.full((2, 1), 9.0))])

    def make(*callbacks):
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        return Runner(model, optimizer, nn.MSELoss(), [target_mean], callbacks)

    batches, save = [(torch.ones(2, 1), torch.full((2, 1), float(number))) for number in range(4)], Snapshots()
    make(save).fit(batches)
    saved = load(save.saved[1])
    saved["ranks"] *= processes  # of a run on another number, the rest of the epoch is measured
    runner = make(Evaluate())
    runner.state.load_state_dict(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = runner.fit(batches)
    assert history[0]["train/target_mean"] == (1.5 if processes == 1 else 2.5)


def target_mean(output, target):
    return target.mean()


def test_a_state_between_epochs_contains_no_metrics():
    save, batches = Snapshots(), [(torch.ones(4, 1), torch.zeros(4, 1))] * 2
    model = nn.Linear(1, 1)
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), [Scores()], [save])
    runner.fit(batches, epochs=2, val_loader=batches)
    ranks = [load(saved)["ranks"][0] for saved in save.saved]
    assert [len(rank["metrics"].get("Scores", {}).get("scores", ())) for rank in ranks] == [4, 8, 0, 4, 8, 0]
    assert [len(rank["losses"]) for rank in ranks] == [1, 1, 0, 1, 1, 0]


def with_own_buffers(rank, folder):
    class Write(Callback):
        def on_checkpoint(self, state):
            if state.global_step == 2:
                torch.save(state.state_dict(), f"{folder}/state{rank}")

    def train(saved):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        model = DistributedDataParallel(model, broadcast_buffers=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        runner = Runner(model, optimizer, nn.MSELoss(), [], [Write()])
        if saved:
            states = [torch.load(f"{folder}/state{owner}", weights_only=True) for owner in range(2)]
            runner.state.load_state_dict({**states[0], "ranks": [state["ranks"][0] for state in states]})
        generator = torch.Generator().manual_seed(rank)
        batches = [(torch.randn(4, 2, generator=generator), torch.zeros(4, 1)) for _ in range(4)]
        runner.fit(batches)
        return model.module[1].running_mean.clone()

    gold = train(saved=False)
    torch.distributed.barrier()
    return gold, train(saved=True)


def test_buffers_that_are_not_broadcast_are_those_of_each_process(tmp_path):
    cases = {"buffers": partial(with_own_buffers, folder=str(tmp_path))}
    (first, first_again), (second, second_again) = on_two_processes(cases, tmp_path)["buffers"]
    assert not torch.equal(first, second)
    assert torch.equal(first, first_again)
    assert torch.equal(second, second_again)


def test_random_states_are_saved_as_tensors_which_take_less_time_than_a_thousand_numbers():
    random.seed(3), numpy.random.seed(4)
    train, _ = loaders("iterable", 0)  # without a len, so that there is a state from before the prefetched batch
    make_classifier([save := Snapshots()], accumulate_steps=2).fit(train)

    def leaves(value):
        if isinstance(value, dict):
            return sum(map(leaves, value.values()))
        return sum(map(leaves, value)) if isinstance(value, (list, tuple)) else 1

    for saved in save.saved:
        assert leaves(load(saved)) < 150
    numpy.random.normal()  # leaves a second one for later
    for loads in (lambda state: state, lambda state: load(saved_bytes(packed(state)))):
        state = get_random_state(torch.device("cpu"))
        expected = [random.random(), random.gauss(0, 1), *numpy.random.normal(size=3), torch.rand(1).item()]
        set_random_state(loads(state), torch.device("cpu"))
        assert expected == [random.random(), random.gauss(0, 1), *numpy.random.normal(size=3), torch.rand(1).item()]


def test_a_normal_number_that_numpy_has_aside_is_still_there_after_a_restored_state():
    device = torch.device("cpu")
    numpy.random.normal()  # leaves a second one for later
    aside = get_random_state(device)
    expected = numpy.random.normal()
    get_random_state(device)
    set_random_state(aside, device)
    again = get_random_state(device)
    numpy.random.normal()
    set_random_state(again, device)
    assert numpy.random.normal() == expected


def saved_bytes(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()
