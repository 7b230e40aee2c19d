"""The mean loss of a loader is that of the loop, though graphs add to it."""

import pytest
import torch
from fit_callbacks import CompiledStep
from fit_core import Callback, Runner
from followed import assert_follows, batches, train


class Read(Callback):
    """Note the mean after each batch, and keep the meters of all epochs."""

    def on_begin(self, state):
        self.means, self.meters = [], []

    def on_batch_end(self, state):
        self.means.append(float(state.loss_meters["loss"].compute()))

    def on_epoch_end(self, state):
        self.meters.append((state.loss_meters["loss"], state.logs["train/loss"]))


def test_the_mean_can_be_read_after_each_batch_and_kept(capsys):
    ours, usual = Read(), Read()
    train(CompiledStep(), ours)
    train(usual)
    assert "was compiled" in capsys.readouterr().out
    torch.testing.assert_close(ours.means, usual.means, rtol=1e-9, atol=0)
    assert [float(meter.compute()) for meter, _ in ours.meters] == [logged for _, logged in ours.meters]


class Weighted(Runner):
    """A loss that is a mean over something else than the samples."""

    weight = staticmethod(lambda target: None)

    def forward(self):
        super().forward()
        self.state.weight = self.weight(self.state.target)


@pytest.mark.parametrize(
    "weight",
    [lambda target: 3, lambda target: 0.5, lambda target: (target > 2).sum(), lambda target: target.size(0)],
    ids=["int", "float", "tensor", "size"],
)
def test_weights(weight, capsys):
    class Own(Weighted):
        pass

    Own.weight = staticmethod(weight)
    assert_follows(capsys, runner=Own)


def test_batches_of_one_form_and_different_numbers_of_samples(capsys):
    class Sized(Runner):
        def forward(self):
            super().forward()
            self.state.batch_size = 4

    class First(Callback):
        capturable = True

        def on_batch_begin(self, state):
            state.batch_size = 4 if state.batch_idx % 2 else 8

    assert_follows(capsys, First())
    assert_follows(capsys, runner=Sized)


def test_a_weight_that_forward_sets_for_one_shape_of_a_window(capsys):
    class Short(Runner):
        def forward(self):
            super().forward()
            if len(self.state.target) < 8:
                self.state.weight = 7

    def data():
        return [(x[:5], y[:5]) if number == 8 else (x, y) for number, (x, y) in enumerate(batches())]

    reason = "forward sets the weight of a batch, and accumulate_steps is above 1"
    assert_follows(capsys, runner=Short, data=data, accumulate_steps=3, reason=reason)
