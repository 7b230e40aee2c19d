"""A resumed run uses graphs for the same batches as the uninterrupted run, so it has the same bits."""

import copy

import pytest
import torch
from fit_callbacks import CompiledStep, Freeze, ResetOptimizer, ScheduledDropout
from fit_callbacks.compiled import progress
from fit_core import Callback, Runner
from torch import nn

BATCHES = 6


@pytest.fixture(autouse=True)
def marked(monkeypatch):
    """Let each graph change a weight a little, so that the bits say which steps a graph has made."""

    def compile_marked(graph, inputs):
        @torch.no_grad()
        def run(tensors):
            outputs = graph(*tensors)
            next(t for t in tensors if t.shape == (16, 6)).mul_(1 + 1e-4)
            return outputs

        return run

    monkeypatch.setattr("fit_callbacks.compiled.traced._compile", compile_marked)


class Odd:
    def to(self, device):
        return self


class First(Runner):
    """Use the first part of the input."""

    def forward(self):
        state = self.state
        state.batch_size = len(state.target)
        state.output = state.model(state.input[0])
        state.loss = state.criterion(state.output, state.target)


class Decay(Callback):
    """Change the weight decay every 4 steps."""

    def on_batch_begin(self, state):
        state.optimizer.param_groups[0]["weight_decay"] = 0.01 * (state.global_step // 4)


class ReplaceAtStart(Callback):
    """Replace a module at the start of an epoch, and a weight at the start of the next."""

    def on_batch_begin(self, state):
        if state.epoch == 1 and state.batch_idx == 0:
            state.model[0].weight.data = state.model[0].weight.data * 0.9

    def on_epoch_begin(self, state):
        state.model[1] = nn.Sigmoid() if state.epoch > 1 else nn.Tanh()


class Keep(Callback):
    """Keep the state of the run after each batch and each epoch."""

    def __init__(self):
        self.states = []

    def on_checkpoint(self, state):
        self.states.append(copy.deepcopy(state.state_dict()))


def sizes(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 6, generator=generator), torch.randint(4, (n,), generator=generator)) for n in sizes]


def adam(weights):
    return torch.optim.Adam(weights, 1e-2)


def nadam(weights):
    return torch.optim.NAdam(weights, 1e-2)


def rare_object():
    return [((x, Odd() if number == 3 else 1), y) for number, (x, y) in enumerate(sizes(*[8] * BATCHES))]


VARIANTS = {
    "freeze": {"callbacks": lambda: [Freeze(["0."], until=1)]},
    "freeze in windows": {"callbacks": lambda: [Freeze(["0."], until=1)], "accumulate_steps": 2},
    "dropout": {"callbacks": lambda: [ScheduledDropout(0.0, 0.3)]},
    "reset": {"callbacks": lambda: [ResetOptimizer([1])]},
    "decay": {"callbacks": lambda: [Decay()], "epochs": 4},
    "replaced": {"callbacks": lambda: [ReplaceAtStart()]},
    "nadam": {"make": nadam},
    "rare object": {"data": rare_object, "runner": First},
    "many shapes": {"data": lambda: sizes(8, 7, 6, 8, 7, 6)},
}


def prepare(callbacks=list, make=adam, runner=Runner, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 4))
    callbacks = [*callbacks(), CompiledStep(), Keep()]
    return runner(model, make(model.parameters()), nn.CrossEntropyLoss(), callbacks=callbacks, **options)


def assert_same(first, second):
    """The bits of all weights and of the optimizer are the same. The counters may have another dtype after a run."""
    for part in ("model", "optimizer"):
        states = [state[part]["state"] if part == "optimizer" else state[part] for state in (first, second)]
        torch.testing.assert_close(*states, rtol=0, atol=0, check_dtype=False)
    assert first["history"] == second["history"]


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_after_each_batch(name, monkeypatch, capsys):
    if name == "many shapes":
        monkeypatch.setattr(progress, "GRAPHS", 2)
    options = dict(VARIANTS[name])
    data, epochs = options.pop("data", lambda: sizes(*[8] * BATCHES)), options.pop("epochs", 3)
    whole = prepare(**options)
    whole.fit(data(), epochs=epochs)
    assert "was compiled" in capsys.readouterr().out
    for saved in whole.state.callbacks[-1].states:
        resumed = prepare(**options)
        resumed.state.load_state_dict(copy.deepcopy(saved))
        resumed.fit(data(), epochs=epochs)
        assert_same(whole.state.state_dict(), resumed.state.state_dict())


def test_an_edited_program_is_looked_at_again(capsys):
    """Its first batches run as usual, since the new code may do something that a graph would freeze."""

    class Same(Runner):
        def forward(self):
            super().forward()

    class Edited(Runner):
        def forward(self):
            super().forward()
            self.calls = getattr(self, "calls", 0) + 1

    whole = prepare(runner=Same)
    whole.fit(sizes(*[8] * BATCHES))
    saved = whole.state.callbacks[-1].states[3]
    capsys.readouterr()
    for kind, expected in ((Same, "was compiled"), (Edited, "the step changes runner.calls")):
        resumed = prepare(runner=kind)
        resumed.state.load_state_dict(copy.deepcopy(saved))
        resumed.fit(sizes(*[8] * BATCHES))
        assert expected in capsys.readouterr().out


class Arguments:
    """The arguments of a program, of which a step reads one."""

    def __init__(self, folder):
        self.folder, self.scale = folder, 2.0


def test_arguments_that_the_step_does_not_read_may_differ():
    class Scaled(Runner):
        def forward(self):
            super().forward()
            self.state.loss = self.state.loss * self.arguments.scale

    def scaled(folder):
        runner = prepare(runner=Scaled)
        runner.arguments = Arguments(folder)
        return runner

    whole = scaled("a")
    whole.fit(sizes(*[8] * BATCHES))
    resumed = scaled("b")
    resumed.state.load_state_dict(copy.deepcopy(whole.state.callbacks[-1].states[3]))
    resumed.fit(sizes(*[8] * BATCHES))
    assert_same(whole.state.state_dict(), resumed.state.state_dict())
