"""Train with a compiled step and without."""

import torch
from fit_callbacks import CompiledStep
from fit_core import Runner
from torch import nn


class Net(nn.Module):
    """A network whose forward pass is a function, with an attribute of every kind."""

    def __init__(self, forward=lambda module, input: module.layers(input)):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
        self.register_buffer("count", torch.ones(()))
        self.run, self.calls, self.options = forward, [], {"scale": 1.0}
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, input):
        return self.run(self, input)


def batches(number=10):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 6, generator=generator), torch.randint(6, (8,), generator=generator)) for _ in range(number)
    ]


def adam(weights):
    return torch.optim.Adam(weights, 1e-2)


def train(*callbacks, model=Net, make=adam, data=batches, runner=Runner, criterion=nn.CrossEntropyLoss, **options):
    model = model().double()
    torch.manual_seed(3)
    run = runner(model, make(model.parameters()), criterion(), callbacks=callbacks, **options)
    history = run.fit([(x.double(), y if y.dtype is torch.int64 else y.double()) for x, y in data()], epochs=3)
    return [row["train/loss"] for row in history], model.state_dict(), run.state.optimizer.state_dict()["state"]


def assert_follows(capsys, *callbacks, reason=None, **options):
    """Train with CompiledStep and without."""
    ours = train(*callbacks, CompiledStep(), **options)
    out = capsys.readouterr().out
    assert (reason is None) == ("as usual" not in out), out
    assert (reason or "was compiled") in out
    torch.testing.assert_close(ours, train(*callbacks, **options), rtol=1e-9, atol=1e-12)
