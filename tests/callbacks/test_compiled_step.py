"""A compiled step follows the ordinary one, whatever is in it."""

import copy
import functools

import pytest
import torch
from fit_callbacks import AdaptiveGradientClipping, CompiledStep, Freeze, GradientClipping, LRScheduler, ModelEma
from fit_core import Callback, Runner
from torch import nn
from torch.optim.lr_scheduler import LinearLR


def accuracy(output, target):
    return (output.argmax(1) == target).double().mean()


def network(dtype=torch.float64):
    torch.manual_seed(0)
    layers = nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4)
    return nn.Sequential(*layers).to(dtype)


def batches(number=12, last=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    sizes = [8] * (number - 1) + [last]
    return [
        (torch.randn(n, 6, generator=generator).to(dtype), torch.randint(4, (n,), generator=generator)) for n in sizes
    ]


def adam(weights):
    return torch.optim.Adam(weights, 1e-2)


def train(*callbacks, make=adam, model=None, data=None, epochs=3, runner=Runner, **options):
    model = model or network()
    torch.manual_seed(3)
    run = runner(model, make(model.parameters()), nn.CrossEntropyLoss(), [accuracy], callbacks=callbacks, **options)
    return run, run.fit(data or batches(), epochs=epochs)


def assert_follows(ours, theirs, rtol=1e-11):
    """Weights, statistics, optimizer and history are equal up to rounding."""
    states = [run.state.model.state_dict() for run, _ in (ours, theirs)]
    torch.testing.assert_close(*states, rtol=rtol, atol=1e-13)
    optimizers = [run.state.optimizer.state_dict() for run, _ in (ours, theirs)]
    torch.testing.assert_close(*(state["state"] for state in optimizers), rtol=rtol, atol=1e-13, check_dtype=False)
    assert optimizers[0]["param_groups"] == optimizers[1]["param_groups"]
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert a == pytest.approx(b, rel=rtol)


def was_compiled(capsys, times=1):
    out = capsys.readouterr().out
    assert out.count("was compiled") == times, out
    assert "as usual" not in out


OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, 0.1),
    "momentum": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9, weight_decay=1e-3),
    "nesterov": lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9, nesterov=True),
    "adam": adam,
    "amsgrad": lambda weights: torch.optim.Adam(weights, 1e-2, amsgrad=True),
    "adamw": lambda weights: torch.optim.AdamW(weights, 1e-2, weight_decay=0.1),
    "rmsprop": lambda weights: torch.optim.RMSprop(weights, 1e-3, momentum=0.9, centered=True),
    "adamax": lambda weights: torch.optim.Adamax(weights, 1e-2),
    "adadelta": lambda weights: torch.optim.Adadelta(weights, 0.1),
    "nadam": lambda weights: torch.optim.NAdam(weights, 1e-2),
    "radam": lambda weights: torch.optim.RAdam(weights, 1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, capsys):
    ours = train(CompiledStep(), make=OPTIMIZERS[name])
    was_compiled(capsys)
    # The last two keep a product of coefficients, which the ordinary step computes in float32.
    assert_follows(ours, train(make=OPTIMIZERS[name]), rtol=1e-5 if name in ("nadam", "radam") else 1e-11)


def test_a_hundred_steps_in_float32(capsys):
    data = batches(25, dtype=torch.float32)
    ours = train(CompiledStep(), model=network(torch.float32), data=data, epochs=4)
    was_compiled(capsys)
    theirs = train(model=network(torch.float32), data=data, epochs=4)
    for a, b in zip(ours[0].state.model.parameters(), theirs[0].state.model.parameters(), strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    assert ours[1][-1]["train/loss"] == pytest.approx(theirs[1][-1]["train/loss"], rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("last", [8, 3])
def test_accumulation_over_unequal_batches(size, last, capsys):
    data = batches(last=last)
    ours = train(CompiledStep(), data=data, epochs=4, accumulate_steps=size)
    assert "was compiled" in capsys.readouterr().out
    assert_follows(ours, train(data=data, epochs=4, accumulate_steps=size))


def test_schedule_clipping_and_average_do_not_compile_again(capsys):
    def parts():
        schedule = LRScheduler(lambda optimizer, steps: LinearLR(optimizer, 0.1, 1.0, steps))
        return GradientClipping(0.3), AdaptiveGradientClipping(0.1), schedule, ModelEma(0.9)

    ours, theirs = parts(), parts()
    got = train(*ours, CompiledStep())
    was_compiled(capsys)
    assert_follows(got, train(*theirs))
    torch.testing.assert_close(ours[3].model.state_dict(), theirs[3].model.state_dict(), rtol=1e-11, atol=1e-13)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = nn.Linear(6, 6), nn.Linear(6, 4)
        self.back = nn.Linear(6, 6)
        self.back.weight = self.into.weight
        self.unused = nn.Linear(2, 2)

    def forward(self, input):
        return self.out(self.back(self.into(input).tanh()).tanh())


def test_tied_unused_and_frozen_weights_and_several_groups(capsys):
    def make(weights):
        first, *rest = weights
        return torch.optim.AdamW([{"params": [first], "lr": 1e-3, "weight_decay": 0.0}, {"params": rest}], 1e-2)

    def model():
        tied = Tied().double()
        tied.out.bias.requires_grad = False
        return tied

    ours = train(CompiledStep(), make=make, model=model(), accumulate_steps=2)
    assert "was compiled" in capsys.readouterr().out
    assert_follows(ours, train(make=make, model=model(), accumulate_steps=2))


def test_bf16(capsys):
    data = batches(dtype=torch.float32)
    ours = train(CompiledStep(), model=network(torch.float32), data=data, use_bf16=True)
    was_compiled(capsys)
    theirs = train(model=network(torch.float32), data=data, use_bf16=True)
    assert ours[1][-1]["train/loss"] == pytest.approx(theirs[1][-1]["train/loss"], rel=1e-3)


class Named(Runner):
    """Takes dicts, returns several losses, and weighs by tokens."""

    def forward(self):
        state = self.state
        state.output = {"scores": state.model(state.input["x"])}
        loss = nn.functional.cross_entropy(state.output["scores"], state.input["y"])
        state.loss = {"loss": loss, "half": loss / 2}
        state.target, state.output = state.input["y"], state.output["scores"]
        state.batch_size, state.weight = 8, (state.target > 0).sum()


def test_a_forward_of_dicts_with_losses_and_weights(capsys):
    data = [{"x": x, "y": y} for x, y in batches()]
    ours = train(CompiledStep(), data=data, runner=Named)
    was_compiled(capsys)
    theirs = train(data=data, runner=Named)
    assert_follows(ours, theirs)
    assert ours[1][0]["train/half"] == pytest.approx(theirs[1][0]["train/half"], rel=1e-11)


def test_validation_and_evaluate_between_steps(capsys):
    class Evaluate(Callback):
        def on_batch_end(self, state):
            if state.is_train and state.batch_idx == 5:
                run = self.runner.evaluate(batches(3))
                self.seen.append(run["val/loss"])

    def run(*last):
        evaluate = Evaluate()
        evaluate.seen = []
        model = network()
        torch.manual_seed(3)
        evaluate.runner = Runner(model, adam(model.parameters()), nn.CrossEntropyLoss(), callbacks=[evaluate, *last])
        history = evaluate.runner.fit(batches(), epochs=3, val_loader=batches(4))
        return (evaluate.runner, history), evaluate.seen

    (ours, seen), (theirs, expected) = run(CompiledStep()), run()
    was_compiled(capsys)
    assert_follows(ours, theirs)
    assert seen == pytest.approx(expected, rel=1e-11)


def test_what_changes_between_epochs_is_compiled_again(capsys):
    class Change(Callback):
        def on_epoch_begin(self, state):
            state.model[3].p = 0.1 * state.epoch

    ours = train(Change(), Freeze(["0."], until=1), CompiledStep(), epochs=3)
    out = capsys.readouterr().out
    assert "as usual" not in out
    assert_follows(ours, train(Change(), Freeze(["0."], until=1), epochs=3))


class Save(Callback):
    """Keeps the run after a number of batches, and stops it."""

    def __init__(self, after):
        self.after = after

    def on_checkpoint(self, state):
        if state.epoch * 12 + state.batch_idx + 1 == self.after and state.status == "running" and state.is_train:
            self.state = copy.deepcopy(state.state_dict())
            state.should_stop = True


@functools.cache
def uninterrupted(size):
    return train(CompiledStep(), accumulate_steps=size)


@pytest.mark.parametrize("after", [1, 2, 3, 16, 23])
@pytest.mark.parametrize("size", [1, 3])
def test_a_resumed_run_has_the_same_bits(after, size):
    whole, history = uninterrupted(size)
    save = Save(after)
    train(CompiledStep(), save, accumulate_steps=size)
    model = network()
    options = {"callbacks": [CompiledStep()], "accumulate_steps": size}
    resumed = Runner(model, adam(model.parameters()), nn.CrossEntropyLoss(), [accuracy], **options)
    resumed.state.load_state_dict(save.state)
    assert resumed.fit(batches(), epochs=3) == history
    for a, b in zip(model.state_dict().values(), whole.state.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_runs_go_from_ordinary_to_compiled_and_back():
    def half(first, second):
        save = Save(16)
        train(*first, save)
        model = network()
        run = Runner(model, adam(model.parameters()), nn.CrossEntropyLoss(), [accuracy], callbacks=second)
        run.state.load_state_dict(save.state)
        return run, run.fit(batches(), epochs=3)

    whole = train()
    assert_follows(half([], [CompiledStep()]), whole)
    assert_follows(half([CompiledStep()], []), whole)


@pytest.mark.compiler
@pytest.mark.timeout(600)
def test_the_compiler_follows_and_resumes_with_the_same_bits(capsys):
    parts = [GradientClipping(0.3), CompiledStep()]
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    ours = train(*parts, model=copy.deepcopy(model))
    was_compiled(capsys)
    assert_follows(ours, train(GradientClipping(0.3), model=copy.deepcopy(model)))
    save = Save(16)
    train(GradientClipping(0.3), CompiledStep(), save)  # with dropout, from a stream of its own
    whole = train(GradientClipping(0.3), CompiledStep())
    model = network()
    resumed = Runner(model, adam(model.parameters()), nn.CrossEntropyLoss(), [accuracy], callbacks=parts)
    resumed.state.load_state_dict(save.state)
    assert resumed.fit(batches(), epochs=3) == whole[1]
    for a, b in zip(model.parameters(), whole[0].state.model.parameters(), strict=True):
        assert torch.equal(a, b)
