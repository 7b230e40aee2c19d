"""Clipping of gradients equals the formula, written out here."""

import math

import pytest
import torch
from fit_callbacks import (
    AdaptiveGradientClipping,
    GradientClipping,
)
from fit_core import Callback, Runner
from scene import batches, make, network, same
from torch import nn


def train_by_hand(clip, epochs=1, accumulate=1):
    model, norms = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for input, target in batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(input), target).backward()
            norms.append(clip(model))
            optimizer.step()
    return model, norms


@pytest.mark.parametrize(("bound", "norm_type"), [(0.3, 2.0), (0.05, math.inf)])
def test_clipping_by_norm_equals_the_loop_by_hand(bound, norm_type):
    runner = make(GradientClipping(bound, norm_type=norm_type))
    history = runner.fit(batches())
    model, norms = train_by_hand(lambda model: nn.utils.clip_grad_norm_(model.parameters(), bound, norm_type))
    assert same(runner.state.model, model)
    assert history[0]["grad_norm"] == pytest.approx(float(torch.stack(norms).mean()), rel=1e-6)
    assert max(norms) > bound


def test_clipping_by_value_equals_the_loop_by_hand():
    runner = make(GradientClipping(value=0.01))
    runner.fit(batches())
    model, _ = train_by_hand(lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.01))
    assert same(runner.state.model, model)


def test_clipping_twice_unscales_once():
    both = make(GradientClipping(0.3), GradientClipping(value=0.01), use_fp16=True)
    both.fit(batches(), epochs=2)

    class Both(Callback):
        def on_before_step(self, state):
            nn.utils.clip_grad_norm_(state.model.parameters(), 0.3)
            nn.utils.clip_grad_value_(state.model.parameters(), 0.01)

    one = make(Both(), use_fp16=True)
    one.fit(batches(), epochs=2)
    assert same(both.state.model, one.state.model)


def test_a_skipped_step_does_not_spoil_the_logged_norm():
    class Overflow(Callback):
        def on_after_backward(self, state):
            if state.batch_idx == 1:
                next(state.model.parameters()).grad.fill_(torch.inf)

    history = make(Overflow(), GradientClipping(0.3), use_fp16=True).fit(batches())
    assert 0 < history[0]["grad_norm"] < 10


def test_adaptive_clipping_equals_the_papers_formula():
    clip, eps = 0.02, 1e-3

    def by_the_paper(model):
        for name, parameter in model.named_parameters():
            if name.startswith("4."):
                continue
            units = [(parameter, parameter.grad)]
            if parameter.dim() > 1:
                units = list(zip(parameter, parameter.grad, strict=True))
            for weight, gradient in units:
                limit = clip * max(float(weight.detach().norm()), eps)
                if float(gradient.norm()) > limit:
                    gradient *= limit / gradient.norm()

    runner = make(AdaptiveGradientClipping(clip, eps=eps, exclude=["4."]))
    runner.fit(batches())
    model, _ = train_by_hand(by_the_paper)
    for ours, theirs in zip(runner.state.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    unclipped, _ = train_by_hand(lambda model: None)
    assert not same(model, unclipped)


def test_gradients_of_another_optimizer_are_not_clipped():
    """Those of the second of two optimizers are not complete when the first steps, and still scaled in fp16."""

    class TwoSteps(Runner):
        def _make_step(self):
            state = self.state
            state.loss = state.criterion(state.model(state.input), state.target)
            state.loss.backward()
            untouched = state.model[4].weight.grad.clone()
            self.optimizer_step(first)
            assert torch.equal(state.model[4].weight.grad, untouched)
            self.optimizer_step(second)
            assert not torch.equal(state.model[4].weight.grad, untouched)

    model = network()
    first, second = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[:4], model[4:]))
    both = torch.optim.SGD(model.parameters(), lr=0.1)
    runner = TwoSteps(model, both, nn.CrossEntropyLoss(), callbacks=[AdaptiveGradientClipping(1e-4)])
    runner.fit(batches()[:1])


def test_clipping_refuses_what_means_nothing():
    with pytest.raises(ValueError, match="either max_norm or value"):
        GradientClipping()
    with pytest.raises(ValueError, match="either max_norm or value"):
        GradientClipping(1.0, value=1.0)
    with pytest.raises(ValueError, match="above 0, got -1"):
        GradientClipping(-1)
    assert AdaptiveGradientClipping(exclude="fc").exclude == ("fc",)
    with pytest.raises(ValueError, match=r"exclude to match parameters, got 'fc'\. Pass the start of one of 0.weight"):
        make(AdaptiveGradientClipping(exclude=["fc"])).fit(batches())
