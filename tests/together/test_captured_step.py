"""A captured step computes the bits of the ordinary step, with nothing left out and nothing frozen.

Each test runs on a GPU, if there is one, and on the CPU with a stand-in for CUDA graphs.
"""

import copy
import itertools

import captured
import pytest
import torch
from fit_callbacks import AdaptiveGradientClipping, CompiledStep, Freeze, GradientClipping, LRScheduler, ModelEma
from fit_callbacks.compiled import cuda
from fit_core import Callback, Runner
from fit_metrics import AUROC, F1, Accuracy
from torch import nn
from torch.optim.lr_scheduler import LinearLR

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA: hatch test -m gpu"),
    ],
)


@pytest.fixture(params=["cpu", CUDA])
def device(request, monkeypatch):
    """The device to train on, on which steps are captured."""
    if request.param == "cpu":
        captured.install(monkeypatch)
    return request.param


def single(rate):
    """Round a rate to float32, as which the fused kernels of CUDA read it. Those of the CPU read it as it is."""
    return torch.tensor(rate, dtype=torch.float32).item()


OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, single(0.05), momentum=0.9, fused=True),
    "nesterov": lambda weights: torch.optim.SGD(weights, single(0.05), momentum=0.9, nesterov=True, fused=True),
    "adam": lambda weights: torch.optim.Adam(weights, single(1e-3), fused=True),
    "adamw": lambda weights: torch.optim.AdamW(weights, single(1e-3), weight_decay=0.1, fused=True),
}


class Linear(LinearLR):
    """Rounds its rates to float32."""

    def get_lr(self):
        return [single(rate) for rate in super().get_lr()]


def network(dropout=0.2):
    torch.manual_seed(0)
    layers = nn.Linear(8, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 4)
    return nn.Sequential(*layers)


def batches(number=12, last=16):
    generator = torch.Generator().manual_seed(1)
    sizes = [16] * (number - 1) + [last]
    return [(torch.randn(n, 8, generator=generator), torch.randint(4, (n,), generator=generator)) for n in sizes]


def train(device, callbacks=(), *, optimizer="sgd", epochs=3, data=None, metrics=(), model=None, **options):
    model = (model or network()).to(device)
    torch.manual_seed(3)
    make = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    runner = Runner(
        model, make(model.parameters()), nn.CrossEntropyLoss(), list(metrics), callbacks=list(callbacks), **options
    )
    history = runner.fit(data or batches(), epochs=epochs)
    return runner, history


def assert_same(ours, theirs):
    for a, b in zip(
        ours[0].state.model.state_dict().values(), theirs[0].state.model.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    assert ours[1] == theirs[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("options", [{}, {"use_bf16": True}, {"use_fp16": True}, {"accumulate_steps": 3}], ids=str)
def test_same_bits_as_the_ordinary_step(device, optimizer, options, capsys):
    for data in (batches(), batches(last=5)):
        ours = train(device, [CompiledStep()], optimizer=optimizer, data=data, **options)
        assert "was captured" in capsys.readouterr().out
        assert_same(ours, train(device, optimizer=optimizer, data=data, **options))


@pytest.mark.parametrize("options", [{}, {"use_fp16": True}, {"accumulate_steps": 3}], ids=str)
def test_same_bits_with_clipping_schedule_average_and_metrics(device, options, capsys):
    def parts():
        schedule = LRScheduler(lambda optimizer, _: Linear(optimizer, 0.1, 1.0, 20))
        return [GradientClipping(0.3), AdaptiveGradientClipping(0.1), schedule, ModelEma(0.9)]

    def metrics():
        return [Accuracy(1), Accuracy(2), F1(num_classes=4), AUROC(num_classes=4)]

    ours, theirs = [*parts(), CompiledStep()], parts()
    got = train(device, ours, metrics=metrics(), **options)
    assert "was captured" in capsys.readouterr().out
    expected = train(device, theirs, metrics=metrics(), **options)
    assert_same(got, expected)
    for a, b in zip(ours[3].model.state_dict().values(), theirs[3].model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


class ChangesOutput(Callback):
    """Changes what the metrics see, after they might have seen it."""

    capturable = True

    def on_after_backward(self, state):
        state.output.detach().neg_()


class ReplacesOutput(Callback):
    capturable = True

    def on_after_backward(self, state):
        state.output = -state.output.detach()


@pytest.mark.parametrize("change", [ChangesOutput, ReplacesOutput])
def test_metrics_see_what_a_hook_has_changed(device, change, capsys):
    got = train(device, [change(), CompiledStep()], metrics=[Accuracy(1), Accuracy(1, 2, name="both")])
    assert "was captured" in capsys.readouterr().out
    assert_same(got, train(device, [change()], metrics=[Accuracy(1), Accuracy(1, 2, name="both")]))


class Keep(Callback):
    """Keeps what a step has returned."""

    def __init__(self):
        self.losses, self.outputs = [], []

    def on_batch_end(self, state):
        self.losses.append(state.loss)
        self.outputs.append(state.output)


def test_kept_losses_and_outputs_are_not_overwritten(device):
    ours, theirs = Keep(), Keep()
    train(device, [ours, CompiledStep()])
    train(device, [theirs])
    for kind in ("losses", "outputs"):
        for a, b in zip(getattr(ours, kind), getattr(theirs, kind), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "hook", ["on_loader_begin", "on_loader_end", "on_epoch_begin", "on_epoch_end", "on_checkpoint"]
)
@pytest.mark.parametrize("has_len", [True, False])
def test_what_a_hook_between_batches_keeps_is_not_overwritten(device, has_len, hook):
    class WithoutLen:
        def __iter__(self):
            return iter(batches())

    def keep(self, state):
        if state.output is not None:
            kept[-1].append((state.output, state.loss))

    kept = []
    for callbacks in ([CompiledStep()], []):
        kept.append([])
        keeper = type("Keep", (Callback,), {hook: keep})()
        train(device, [keeper, *callbacks], data=None if has_len else WithoutLen())
    assert kept[0]
    for ours, theirs in zip(*kept, strict=True):
        assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("dampening", [0, 0.5])
def test_layers_that_are_unfrozen_begin_their_momentum(device, dampening, capsys):
    """The fused kernel of SGD raises if some parameters have no momentum yet, and it is not the user who chose it."""

    def sgd(weights):
        return torch.optim.SGD(weights, 0.05, momentum=0.9, dampening=dampening)

    ours, theirs = (
        train(device, [Freeze(["0."], until=1), *callbacks], optimizer=sgd)[0].state
        for callbacks in ([CompiledStep()], [])
    )
    assert "was captured" in capsys.readouterr().out
    for a, b in zip(ours.model.state_dict().values(), theirs.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_momentum_of_a_first_step_that_fp16_skips_is_not_left_undefined(device):
    class Overflow(Callback):
        def on_batch_begin(self, state):
            if state.is_train and state.global_step == 0:
                state.input = state.input * 1e30

    def sgd(weights):
        return torch.optim.SGD(weights, 0.05, momentum=0.9)

    def run(callbacks):
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        model.load_state_dict({name: torch.full_like(value, 0.1) for name, value in model.state_dict().items()})
        garbage = [torch.full((size,), 1e3, device=device) for size in (4, 16, 64, 128) for _ in range(50)]
        del garbage
        return train(device, [Overflow(), *callbacks], optimizer=sgd, model=model, use_fp16=True)[0].state.model

    for a, b in zip(run([CompiledStep()]).parameters(), run([]).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_optimizer_is_left_as_usual(device, tmp_path):
    def plain(weights):
        return torch.optim.AdamW(weights, 1e-3)

    ours, theirs = train(device, [CompiledStep()], optimizer=plain)[0], train(device, optimizer=plain)[0]
    a, b = ours.state.optimizer.state_dict(), theirs.state.optimizer.state_dict()
    assert a["param_groups"] == b["param_groups"]
    for one, other in zip(a["state"].values(), b["state"].values(), strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].device == other[name].device
            torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)
    ours.fit(batches(), epochs=6)  # continues


@pytest.mark.parametrize("name", ["RMSprop", "NAdam", "RAdam", "Adamax", "Adadelta", "SGD"])
def test_other_optimizers_follow_the_ordinary_step(device, name, capsys):
    def make(weights):
        weights = list(weights)
        return getattr(torch.optim, name)([{"params": weights[:2]}, {"params": weights[2:], "lr": 2e-3}], lr=1e-3)

    def double(callbacks):
        model = network(0.0).double()
        data = [(x.double(), y) for x, y in batches()]
        return train(device, callbacks, optimizer=make, model=model, data=data)[0].state.model.state_dict().values()

    ours = double([CompiledStep()])
    assert "was captured" in capsys.readouterr().out
    for a, b in zip(ours, double([]), strict=True):
        # NAdam and RAdam keep a product of coefficients, which the ordinary step computes in float32.
        torch.testing.assert_close(a, b, rtol=1e-6 if name in ("NAdam", "RAdam") else 1e-10, atol=1e-10)


def test_resume_has_the_same_bits(device, tmp_path):
    whole = train(device, [CompiledStep()], epochs=4, use_fp16=True)

    class Stop(Callback):
        def on_checkpoint(self, state):
            if state.global_step == 17:
                self.saved = copy.deepcopy(state.state_dict())
                state.should_stop = True

    stop = Stop()
    train(device, [CompiledStep(), stop], epochs=4, use_fp16=True)
    model = network().to(device)
    runner = Runner(
        model, OPTIMIZERS["sgd"](model.parameters()), nn.CrossEntropyLoss(), callbacks=[CompiledStep()], use_fp16=True
    )
    runner.state.load_state_dict(stop.saved)
    assert_same((runner, runner.fit(batches(), epochs=4)), whole)


class Reads(nn.Module):
    """Decides by a number."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, input):
        output = self.layer(input)
        return output if output.sum().item() > 0 else 2 * output


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(8, 4), 0

    def forward(self, input):
        self.calls += 1
        return self.layer(input) * (1 + 1 / self.calls)


class Hook(Callback):
    def on_before_step(self, state):
        for parameter in state.model.parameters():
            parameter.grad.mul_(1 / (1 + state.global_step))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("reads", "waits for the device"),
        ("counts", "the step changes model.calls"),
        ("hook", "Hook.on_before_step is not marked"),
        ("marked hook", "reads state.global_step"),
        ("adagrad", "the step of Adagrad"),
    ],
)
def test_what_cannot_be_captured_runs_as_usual(device, case, reason, capsys):
    def run(*last):
        torch.manual_seed(0)
        model = {"reads": Reads, "counts": Counts}.get(case, lambda: network())()
        hooks = [Hook()] if "hook" in case else []
        for hook in hooks:
            hook.capturable = case == "marked hook"
        make = torch.optim.Adagrad if case == "adagrad" else OPTIMIZERS["sgd"]
        return train(device, [*hooks, *last], optimizer=make, model=model)

    ours = run(CompiledStep())
    out = capsys.readouterr().out
    assert reason in out
    assert "was captured" not in out
    assert_same(ours, run())


def test_a_capture_that_fails_leaves_the_run_and_the_current_stream_as_they_were(device, capsys):
    """The step reads a number only when it is captured, so that no usual step has shown it."""

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.calls = network(), itertools.count()

        def forward(self, input):
            output = self.layers(input)
            if next(self.calls) == 2:
                output.sum().item()
            return output

    class Streams(Callback):
        def on_batch_end(self, state):
            seen.add(cuda.torch.cuda.current_stream())

    seen = set()
    ours = train(device, [CompiledStep(), Streams()], model=Late())
    assert "recording it failed" in capsys.readouterr().out
    assert len(seen) == 1
    assert_same(ours, train(device, model=Late()))


def test_frozen_layers_and_dropout_that_change_are_recorded_again(device, capsys):
    class Change(Callback):
        def on_epoch_begin(self, state):
            state.model[3].p = 0.1 * state.epoch
            state.model[0].weight.requires_grad = state.epoch != 1

    ours = train(device, [Change(), CompiledStep()], epochs=4)
    assert capsys.readouterr().out.count("was captured") == 1  # said once
    assert_same(ours, train(device, [Change()], epochs=4))


@pytest.mark.parametrize("device", [CUDA], indirect=True)  # the stand-in does not see copies that wait
def test_no_step_waits(device, capsys):
    class NoWaits(Callback):
        def on_batch_begin(self, state):
            if state.batch_idx == 6:
                torch.cuda.set_sync_debug_mode("error")

        def on_batch_end(self, state):
            if state.batch_idx == 11:
                torch.cuda.set_sync_debug_mode("default")

    data = [(x.pin_memory(), y.pin_memory()) for x, y in batches()]
    callbacks = [GradientClipping(0.3), ModelEma(0.9), CompiledStep(), NoWaits()]
    try:
        train(device, callbacks, data=data, metrics=[Accuracy(1), Accuracy(2), F1(num_classes=4)], use_fp16=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", [CUDA], indirect=True)  # no memory can be pinned without CUDA
def test_a_loader_with_workers_and_pinned_memory(device, capsys):
    data = torch.utils.data.TensorDataset(*(torch.cat(parts) for parts in zip(*batches(), strict=True)))
    loader = torch.utils.data.DataLoader(data, 16, num_workers=1, pin_memory=True, multiprocessing_context="spawn")
    assert_same(train(device, [CompiledStep()], data=loader), train(device, data=loader))
    assert "was captured" in capsys.readouterr().out
