"""Mixed precision, watching callbacks and refusals of sharded models, and sharding in one line."""

import io
from contextlib import redirect_stdout
from functools import partial

import pytest
import torch
from fit_callbacks import StopOnNonFinite, TensorBoard, summary
from fit_core import Callback, Runner
from fit_distributed import parallel
from processes import on_two_processes
from sharded import loaders, needs_cpu_shards, network, runner, sharded, weights
from torch import nn

pytestmark = [pytest.mark.timeout(240), needs_cpu_shards]


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
    """The results of both ranks, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = {("half", kind): partial(half, kind=kind) for kind in ("policy", "autocast")}
    cases |= {
        "overflow": overflow,
        "nan": not_finite,
        "watch": partial(watch, folder=str(folder / "board")),
        "refused": refused,
        "parallel": in_one_line,
    }
    return on_two_processes(cases, folder) | {"folder": folder}
