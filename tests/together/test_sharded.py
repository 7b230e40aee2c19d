"""A model that the user has sharded with fully_shard trains in the Runner like any other."""

import io
from contextlib import redirect_stdout
from functools import partial

import pytest
import torch
from fit_callbacks import (
    AdaptiveGradientClipping,
    GradientClipping,
    ModelEma,
    StopOnNonFinite,
    TensorBoard,
    summary,
)
from fit_core import Callback
from fit_distributed import parallel
from processes import on_two_processes
from sharded import loaders, needs_cpu_shards, network, runner, sharded, weights
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


def overflow(rank):
    """A gradient is infinite in the shard of one process only, so both skip the step."""

    class Spoil(Callback):
        def on_after_backward(self, state):
            if state.batch_idx == 1 and rank == 1:
                state.model[0].weight.grad.to_local().fill_(float("inf"))

    model = sharded(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)))
    run = runner(model, Spoil(), use_fp16=True)
    batch = torch.ones(4, 6), torch.zeros(4).long()
    run.state.grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    seen = []
    for batches in ([batch], [batch] * 2):
        run.fit(batches)
        seen.append(run.state.grad_scaler.get_scale())
    return seen, all(value.isfinite().all() for value in weights(model).values())


def test_an_overflow_in_one_shard_skips_the_step_everywhere(ranks):
    first, second = ranks["overflow"]
    assert first == second == ([8.0, 4.0], True)


def half(rank, kind):
    """Return whether the Runner and the loop by hand have the same weights, bit for bit."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    def model():
        torch.manual_seed(0)
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        return sharded(layers, **({"mp_policy": policy} if kind == "policy" else {}))

    generator = torch.Generator().manual_seed(rank)
    batches = [(torch.randn(4, 6, generator=generator), torch.randint(3, (4,), generator=generator)) for _ in range(8)]
    ours, theirs = model(), model()
    runner(ours, accumulate_steps=2, use_bf16=kind == "autocast").fit(batches)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
    for number, (input, target) in enumerate(batches):
        theirs.set_requires_gradient_sync(number % 2 == 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            loss = nn.functional.cross_entropy(theirs(input), target) / 2
        loss.backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
    expected = weights(theirs)
    return all(torch.equal(value, expected[name]) for name, value in weights(ours).items())


@pytest.mark.parametrize("kind", ["policy", "autocast"])
def test_mixed_precision_equals_the_loop_by_hand(ranks, kind):
    assert ranks["half", kind] == (True, True)


def not_finite(rank):
    class Spoil(Callback):
        def on_after_backward(self, state):
            if rank == 1:
                state.model[2].bias.grad.to_local().fill_(float("nan"))

    try:
        runner(network(), Spoil(), StopOnNonFinite()).fit(loaders()[0])
    except FloatingPointError as error:
        return str(error)


def test_a_nan_in_one_shard_stops_both(ranks):
    first, second = ranks["nan"]
    assert first.startswith("something on another rank is not finite in epoch 1, batch 1")
    assert second.startswith("the gradient of 2.bias is not finite in epoch 1, batch 1")


def watch(rank, folder):
    """Histograms of whole weights, and a summary."""
    with redirect_stdout(io.StringIO()):
        run = runner(network(), TensorBoard(folder, histograms=True))
        train_loader, val_loader = loaders()
        run.fit(train_loader, epochs=2, val_loader=val_loader)
        text = str(summary(run.state.model))
    return float(weights(run.state.model)["0.weight"].sum()), text


def test_histograms_and_summary_show_whole_weights(ranks, tmp_path_factory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (total, text), (_, other) = ranks["watch"]
    events = EventAccumulator(str(ranks["folder"] / "board"), size_guidance={"histograms": 0})
    events.Reload()
    last = events.Histograms("0/weight")[-1].histogram_value
    assert last.num == 90
    assert last.sum == pytest.approx(total)
    assert "153 parameters" in text
    assert text == other


class Blocks(nn.Module):
    """A model with blocks in a list, one of them with a part of its own, and weights outside of it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Tanh()])
        self.last = nn.Linear(8, 3)

    def forward(self, input):
        output = self.first(input)
        for block in self.blocks:
            output = block(output)
        return self.last(output)


def in_one_line(rank):
    """Each process starts with other weights, of which those of rank 0 count."""
    torch.manual_seed(rank)
    model = parallel(Blocks().double(), fsdp=True)
    parts = [name for name, module in model.named_modules() if hasattr(module, "unshard")]
    train_loader, val_loader = loaders()
    history = runner(model).fit(train_loader, epochs=2, val_loader=val_loader)
    return weights(model), history, parts


def test_parallel_shards_in_one_line(ranks):
    expected, history, _ = in_one_line(0)
    for model, rows, parts in ranks["parallel"]:
        assert parts == ["", "blocks.0", "blocks.1"]
        for name, value in expected.items():
            torch.testing.assert_close(model[name], value, rtol=1e-12, atol=1e-12)
        assert rows[-1] == pytest.approx(history[-1], rel=1e-12)


def refused(rank):
    messages = []
    part = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)).double()
    from torch.distributed.fsdp import fully_shard

    fully_shard(part[0])

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, output, target):
            return self.scale * nn.functional.cross_entropy(output, target)

    scaled = Scaled()
    criterion = runner(network())
    criterion.state.criterion = scaled
    criterion.state.optimizer.add_param_group({"params": scaled.parameters()})
    early = torch.optim.SGD((whole_model := nn.Sequential(nn.Linear(6, 3)).double()).parameters())
    sharded(whole_model)

    def make_from_whole():
        from fit_core import Runner

        Runner(whole_model, early, nn.CrossEntropyLoss())

    for call in (
        lambda: runner(part).fit(loaders()[0]),
        lambda: criterion.fit(loaders()[0]),
        make_from_whole,
    ):
        try:
            call()
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_what_would_drift_apart_is_refused(ranks):
    for part, criterion, optimizer in ranks["refused"]:
        assert part.startswith(
            "expected fully_shard on the whole model, got 2 parameters that are not sharded (1.weight,"
        )
        assert criterion.startswith("expected a wrapped criterion on 2 processes, got a plain Scaled with trainable")
        assert optimizer.startswith(
            "expected an optimizer of the model's 2 trainable parameters, got one that has none"
        )


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What both ranks returned, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = {("train", name, steps): partial(train, name=name, accumulate_steps=steps) for name, steps in TRAINED}
    cases |= {("evaluate", count): partial(evaluate, count=count) for count in (1, 2, 5, 9, 17)}
    cases |= {("half", kind): partial(half, kind=kind) for kind in ("policy", "autocast")}
    cases |= {
        "stopped": stop_in_a_window,
        "stop": stop_validation,
        "overflow": overflow,
        "nan": not_finite,
        "watch": partial(watch, folder=str(folder / "board")),
        "refused": refused,
        "parallel": in_one_line,
    }
    return on_two_processes(cases, folder) | {"folder": folder}
