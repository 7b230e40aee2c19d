"""A saved state contains the whole run, and states of another run are refused."""

import copy
import pickle

import pytest
import torch
from classifier import Augmented, fingerprint, loaders, make
from fit_core import Callback, Runner
from fit_core.random_state import get_random_state, set_random_state
from scene import Snapshots, load, same
from torch import nn
from torch.utils.data import DataLoader


def test_other_settings_are_named_in_one_warning():
    save = Snapshots()
    make([save], accumulate_steps=2).fit(loaders("shuffled", 0)[0], epochs=2)
    runner = make()
    runner.state.load_state_dict(load(save.saved[0]))
    with pytest.warns(UserWarning, match=r"epochs 2 -> 3, batches per epoch 4 -> 5, batch_size 3 -> 2, accumulate_s"):
        runner.fit(DataLoader(Augmented(), batch_size=2, drop_last=True), epochs=3)
    assert [row["epoch"] for row in runner.state.history] == [1, 2, 3]


def test_a_metric_without_memory_is_named():
    class Forgetful:
        def reset(self):
            pass

        def update(self, output, target):
            pass

        def compute(self):
            return 1.0

    save = Snapshots()
    make([save]).fit(loaders("shuffled", 0)[0])
    runner = make()
    runner.state.metrics.append(Forgetful())
    runner.state.load_state_dict(load(save.saved[0]))
    with pytest.warns(UserWarning, match="Forgetful of the interrupted epoch will miss the batches"):
        runner.fit(loaders("shuffled", 0)[0])


def test_a_state_of_another_model_is_refused_whole():
    save = Snapshots()
    make([save]).fit(loaders("shuffled", 0)[0])
    saved = load(save.saved[-1])
    model = nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Linear(9, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    runner = Runner(model, torch.optim.SGD(model.parameters()), nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r"got one of another\. Nothing was loaded") as caught:
        runner.state.load_state_dict(saved)
    lines = str(caught.value).splitlines()
    assert lines[1:] == [
        "  missing: 2.weight, 2.bias",
        "  unexpected: 4.weight, 4.bias",
        "  shape: 0.weight (8, 4) -> (9, 4), 0.bias (8,) -> (9,), 1.weight (8,) -> (9,), 1.bias (8,) -> (9,), "
        "1.running_mean (8,) -> (9,), 1.running_var (8,) -> (9,)",
    ]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_state_of_a_newer_format_is_refused():
    save = Snapshots()
    make([save]).fit(loaders("shuffled", 0)[0])
    saved = load(save.saved[-1])
    saved["format"] = 3
    with pytest.raises(ValueError, match=r"format 1 or older, got 3\. Upgrade fit-core"):
        make().state.load_state_dict(saved)


def test_the_saved_model_has_bare_names():
    model = nn.Sequential(nn.Linear(4, 4), torch.compile(nn.Linear(4, 3), backend="eager"))
    compiled = torch.compile(model, backend="eager")
    runner = Runner(compiled, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
    runner.fit(loaders("shuffled", 0)[0])
    saved = runner.state.state_dict()
    assert list(saved["model"]) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    plain.load_state_dict(saved["model"])
    again = Runner(torch.compile(plain, backend="eager"), torch.optim.SGD(plain.parameters(), lr=0.1), nn.MSELoss())
    again.state.load_state_dict(saved)


def test_a_state_in_memory_can_be_loaded_again_and_again():
    class Keep(Callback):
        def on_checkpoint(self, state):
            if state.global_step == 1 and state.batch_idx == 2:  # inside the second window
                self.saved = copy.deepcopy(state.state_dict())

    keep, loader = Keep(), loaders("shuffled", 0)[0]
    gold = make([keep], accumulate_steps=2)
    gold.fit(loader)
    for _ in range(2):
        runner = make(accumulate_steps=2)
        runner.state.load_state_dict(keep.saved)
        runner.fit(loader)
        assert fingerprint(runner) == fingerprint(gold)


def test_there_is_no_state_before_fit():
    with pytest.raises(RuntimeError, match="expected a run to save, got none yet"):
        make().state.state_dict()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda runner: pickle.loads(pickle.dumps(runner))])
def test_a_copy_of_a_runner_that_has_trained_trains_on_by_itself(copied):
    runner, loader = make(accumulate_steps=2), loaders("shuffled", 0)[0]
    runner.fit(loader)
    runner.evaluate(loader)
    other, random = copied(runner), get_random_state(torch.device("cpu"))
    before = copy.deepcopy(runner.state.model.state_dict())
    history = other.fit(loader, epochs=2)
    assert all(torch.equal(value, before[name]) for name, value in runner.state.model.state_dict().items())
    set_random_state(random, torch.device("cpu"))
    assert runner.fit(loader, epochs=2) == history
    assert same(runner.state.model, other.state.model)
