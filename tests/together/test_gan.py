"""The step of examples/gan.py, with two optimizers, equals a loop by hand in any precision and with accumulation."""

import copy
import runpy
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from by_hand import assert_same_weights
from fit_callbacks import GradientClipping
from fit_core import Callback
from torch import nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "gan.py"))
Both, GanRunner, good, network = (EXAMPLE[name] for name in ("Both", "GanRunner", "good", "network"))

PRECISIONS = {"float32": {}, "bfloat16": {"use_bf16": True}, "float16": {"use_fp16": True}}


def gan():
    torch.manual_seed(0)
    model = nn.ModuleDict({"generator": network(8, 2), "discriminator": network(2, 1)})
    return model, Both(*(torch.optim.Adam(part.parameters(), lr=2e-3, betas=(0.0, 0.99)) for part in model.values()))


def points():
    """With windows of two: one of unequal batches, one of equal batches, and one of a single batch."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 2, generator=generator) for size in (8, 5, 8, 8, 3)]


def noise():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, 8, generator=generator) for size in (20, 11)]


def train_by_hand(precision, accumulate_steps, max_norm=None, epochs=2):
    model, optimizers = gan()
    generator, discriminator = model["generator"], model["discriminator"]
    of_generator, of_discriminator = list(generator.parameters()), list(discriminator.parameters())
    criterion, grad_scaler = nn.BCEWithLogitsLoss(), torch.amp.GradScaler("cpu", enabled=precision == "float16")

    def autocast():
        return nullcontext() if precision == "float32" else torch.autocast("cpu", getattr(torch, precision))

    def step(optimizer, parameters):
        if max_norm is not None:
            grad_scaler.unscale_(optimizer)
            clip_grad_norm_(parameters, max_norm)
        grad_scaler.step(optimizer)

    batches = points()
    torch.manual_seed(2)
    for _ in range(epochs):
        for start in range(0, len(batches), accumulate_steps):
            window = batches[start : start + accumulate_steps]
            samples, expected = sum(map(len, window)), accumulate_steps * len(window[0])
            optimizers.generator.zero_grad()
            optimizers.discriminator.zero_grad()
            for index, real in enumerate(window):
                is_last = index == len(window) - 1
                real.requires_grad_()
                with autocast():
                    fake = generator(torch.randn(len(real), 8))
                    score, fake_score = discriminator(real), discriminator(fake.detach())
                    ones, zeros = torch.ones_like(score), torch.zeros_like(score)
                    loss = criterion(score, ones) + criterion(fake_score, zeros)
                slope = torch.autograd.grad(score.sum(), real, create_graph=True)[0]
                loss = loss + 0.05 * slope.square().sum(1).mean()
                if is_last and samples != expected:  # Correct the gradients that were divided by what was expected.
                    for parameter in model.parameters():
                        if parameter.grad is not None:
                            parameter.grad *= expected / samples
                    expected = samples
                divisor = expected / len(real)
                grad_scaler.scale(loss / divisor).backward(inputs=of_discriminator)
                if is_last:
                    step(optimizers.discriminator, of_discriminator)
                with autocast():
                    loss = criterion(discriminator(fake), ones)
                grad_scaler.scale(loss / divisor).backward(inputs=of_generator)
                if is_last:
                    step(optimizers.generator, of_generator)
                    grad_scaler.update()
    return model, grad_scaler.get_scale()


def train(precision="float32", accumulate_steps=1, callbacks=(), state_dict=None):
    model, optimizers = gan()
    runner = GanRunner(
        model,
        optimizers,
        nn.BCEWithLogitsLoss(),
        [good],
        callbacks,
        accumulate_steps=accumulate_steps,
        **PRECISIONS[precision],
    )
    if state_dict is not None:
        runner.state.load_state_dict(state_dict)
    torch.manual_seed(2)
    return runner, runner.fit(points(), epochs=2, val_loader=noise())


def steps_taken(optimizer):
    return {int(parameter_state["step"]) for parameter_state in optimizer.state.values()}


@pytest.mark.parametrize("max_norm", [None, 0.01], ids=["", "clipped"])
@pytest.mark.parametrize("accumulate_steps", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gan_trains_as_by_hand(precision, accumulate_steps, max_norm):
    by_hand, scale = train_by_hand(precision, accumulate_steps, max_norm)
    callbacks = [] if max_norm is None else [GradientClipping(max_norm)]
    runner, history = train(precision, accumulate_steps, callbacks)
    assert_same_weights(runner.state.model, by_hand)
    assert runner.state.grad_scaler.get_scale() == scale
    windows = -(-len(points()) // accumulate_steps)
    for optimizer in (runner.state.optimizer.generator, runner.state.optimizer.discriminator):
        assert steps_taken(optimizer) == {2 * windows}  # float16 skipped none
    assert history[-1].keys() >= {"train/loss", "train/discriminator", "train/good", "val/good"}
    assert "val/loss" not in history[-1]


def test_a_gan_is_evaluated_without_a_loss_and_predicts_points():
    runner, history = train("bfloat16")
    drawn = runner.predict(noise())
    assert (drawn.shape, drawn.dtype) == ((31, 2), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = torch.cat([runner.state.model["generator"](batch) for batch in noise()]).float()
    assert torch.equal(drawn, expected)
    assert runner.evaluate(noise()) == {"val/good": pytest.approx(float(good(drawn, None)))}
    assert history[-1]["val/good"] == runner.evaluate(noise())["val/good"]


class GradientNorms(Callback):
    """Keep the gradient norm of each optimizer that is about to step."""

    def __init__(self):
        self.norms = []

    def on_before_step(self, state):
        gradients = [parameter.grad for group in state.optimizer.param_groups for parameter in group["params"]]
        self.norms.append((state.optimizer, float(get_total_norm(gradients))))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_clipping_reaches_the_gradients_of_both_optimizers(precision):
    before, after = GradientNorms(), GradientNorms()
    runner, history = train(precision, accumulate_steps=2, callbacks=[before, GradientClipping(0.005), after])
    both = runner.state.optimizer
    assert [optimizer for optimizer, _ in after.norms] == [both.discriminator, both.generator] * 6
    assert all(norm > 0.01 for _, norm in before.norms)
    assert [norm for _, norm in after.norms] == pytest.approx([0.005] * 12, rel=1e-3)
    assert history[-1]["grad_norm"] == pytest.approx(sum(norm for _, norm in before.norms[6:]) / 6)


def test_a_gan_resumes_with_the_same_bits():
    class Keep(Callback):
        def on_checkpoint(self, state):
            saved.append(copy.deepcopy(state.state_dict()))

    saved = []
    uninterrupted, history = train("float16", accumulate_steps=2, callbacks=[Keep()])
    assert len(saved) == 2 * (5 + 1)
    for state_dict in saved:  # inside windows, between them, and after an epoch
        resumed, resumed_history = train("float16", accumulate_steps=2, state_dict=state_dict)
        assert_same_weights(resumed.state.model, uninterrupted.state.model)
        assert resumed_history == history
