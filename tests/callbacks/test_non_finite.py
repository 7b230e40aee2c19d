"""StopOnNonFinite ends a run before what is not finite reaches the weights."""

import math

import pytest
import torch
from fit_callbacks import StopOnNonFinite
from fit_core import Callback
from scene import batches, make
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class Spoils(nn.Module):
    """A linear layer with a complex weight, a buffer and a mask. In its third batch something becomes nan."""

    def __init__(self, what):
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.phase = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("spectrum", torch.zeros(2, dtype=torch.complex64))
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.what = what

    def forward(self, input):
        self.count += self.training
        output = self.linear(input) * (self.phase * self.phase.conj()).real
        if self.count != 3:
            return output
        with torch.no_grad():
            if self.what in ("seen", "spectrum"):
                getattr(self, self.what)[0] = math.nan
        if self.what == "gradient":  # finite, with a gradient that is not
            output = output + 0 * (self.linear.weight * 0).square().sum().sqrt()
        if self.what == "complex gradient":
            output = output + 0 * (self.phase * 0).abs().sum().sqrt()
        return output


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "gradient",
            "the gradient of linear.weight is not finite in epoch 1, batch 3 .* weights are those before this batch",
        ),
        (
            "complex gradient",
            "the gradient of phase is not finite in epoch 1, batch 3 .* weights are those before this batch",
        ),
        ("seen", "the buffer seen is nan in epoch 1, batch 3"),
        ("spectrum", "the buffer spectrum is nan in epoch 1, batch 3"),
    ],
)
def test_the_run_ends_before_the_step_and_names_what_is_not_finite(what, message):
    class Weights(Callback):
        def on_batch_end(self, state):
            self.last = [parameter.detach().clone() for parameter in state.model.parameters()]

    torch.manual_seed(0)
    weights, model = Weights(), Spoils(what)
    with pytest.raises(FloatingPointError, match=message):
        make(StopOnNonFinite(), weights, model=model).fit(batches())
    assert all(map(torch.equal, model.parameters(), weights.last))


def test_a_mask_may_be_infinite_and_fp16_may_overflow():
    torch.manual_seed(0)
    runner = make(StopOnNonFinite(), model=Spoils(None))
    assert len(runner.fit(batches(), epochs=2)) == 2
    runner = make(StopOnNonFinite(), model=nn.Linear(6, 3), use_fp16=True)
    runner.state.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    runner.fit(batches())
    assert runner.state.grad_scaler.get_scale() < 2.0**40
    assert all(torch.isfinite(parameter).all() for parameter in runner.state.model.parameters())


def test_weights_that_were_lost_before_are_named():
    class Loses(Callback):
        def on_batch_end(self, state):
            if state.batch_idx == 1:
                with torch.no_grad():
                    state.model.bias[0] = math.nan

    with pytest.raises(
        FloatingPointError, match=r"the loss is nan in epoch 1, batch 3 .*\. bias was not finite before it\."
    ):
        make(StopOnNonFinite(), Loses(), model=nn.Linear(6, 3)).fit(batches())


@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
def test_a_model_with_sparse_gradients_is_checked_too(name):
    class Spoil(Callback):
        def on_after_backward(self, state):
            gradient = state.model.get_parameter(name).grad
            state.model.get_parameter(name).grad = gradient * math.inf

    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Flatten(), nn.Linear(4, 3))
    data = [(torch.tensor([[0], [2], [2]]), torch.tensor([0, 1, 2]))]
    with pytest.raises(FloatingPointError, match=f"the gradient of {name} is not finite in epoch 1, batch 1"):
        make(Spoil(), StopOnNonFinite(), model=model).fit(data)


def test_a_batch_waits_for_the_device_once():
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    def reads(count):
        torch.manual_seed(0)
        runner = make(StopOnNonFinite(), model=nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)))
        with Reads() as mode:
            runner.fit(batches((4,) * count))
        return mode.count

    assert reads(8) - reads(4) == 4
