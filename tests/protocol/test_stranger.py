"""A callback, a metric and a step as a stranger writes them, who knows only the public names of fit_core."""

import fit_core
import pytest
import torch
from torch import nn


class BestWeights(fit_core.Callback):
    """Remembers the weights of the best epoch and puts them back at the end."""

    def on_begin(self, state: fit_core.RunnerState) -> None:
        self.best = float("inf")

    def on_epoch_end(self, state: fit_core.RunnerState) -> None:
        if state.logs["val/loss"] < self.best:
            self.best = state.logs["val/loss"]
            self.weights = {name: value.clone() for name, value in state.model.state_dict().items()}
            state.logs["best"] = float(state.epoch)

    def on_end(self, state: fit_core.RunnerState) -> None:
        if state.error is None:
            state.model.load_state_dict(self.weights)

    def state_dict(self):
        return {"best": self.best, "weights": self.weights}

    def load_state_dict(self, state_dict):
        self.best, self.weights = state_dict["best"], state_dict["weights"]


class Bias:
    """How far outputs lie above targets."""

    name = "bias"

    def reset(self) -> None:
        self.sum, self.count = 0.0, 0

    def update(self, output, target) -> None:
        self.sum += (output - target).sum()
        self.count += target.numel()

    def compute(self):
        return self.sum / self.count


class LabelSmoothing(fit_core.Runner):
    """A step of one's own: the loss of the standard one, plus a pull of outputs towards zero."""

    def _make_step(self) -> None:
        state = self.state
        state.output = state.model(state.input)
        state.loss = state.criterion(state.output, state.target)
        if state.is_train:
            state.optimizer.zero_grad()
            (state.loss + 0.1 * state.output.square().mean()).backward()
            state.optimizer.step()


def test_a_stranger_is_at_home():
    torch.manual_seed(0)
    data = [(torch.randn(4, 3), torch.randn(4, 1)) for _ in range(3)]
    model = nn.Linear(3, 1)
    metric: fit_core.Metric = Bias()
    best = BestWeights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.9)
    runner = LabelSmoothing(model, optimizer, nn.MSELoss(), [metric], [best])
    history = runner.fit(data, epochs=6, val_loader=data)

    losses = [row["val/loss"] for row in history]
    assert runner.evaluate(data)["val/loss"] == min(losses)
    outputs, targets = runner.predict(data), torch.cat([target for _, target in data])
    bias = float((outputs - targets).mean())
    assert runner.evaluate(data)["val/bias"] == pytest.approx(bias, rel=1e-5)  # summed in another order
    assert history[losses.index(min(losses))]["best"] == losses.index(min(losses))
