"""fit_core.testing finds callbacks that break the protocol. Each class here breaks it in one way."""

import pickle

import pytest
import torch
from fit_core import Callback
from fit_core.testing import (
    CallbackCase,
    check_callback,
)
from fit_core.testing.callbacks import (
    check_any_batch,
    check_evaluation,
    check_forward,
    check_hooks,
    check_make_step,
    check_own_step,
    check_resume,
    check_state,
    check_stop,
    check_training,
)


class Misspelt:
    """A mixin. It is not a callback, so it is not checked when the class is made."""

    def on_batch_ended(self, state):
        """Never called."""


class Typo(Misspelt, Callback):
    pass


class MoreParameters:
    def on_batch_end(self, state, batch=None):
        pass


class WantsMore(MoreParameters, Callback):
    pass


class OnlyOnce(Callback):
    def on_end(self, state):
        self.done = True

    def on_begin(self, state):
        assert not hasattr(self, "done"), "has run before"


class Explodes(Callback):
    def on_before_step(self, state):
        if state.accumulate_steps > 1:
            next(state.model.parameters()).grad.fill_(torch.inf)


class MixesInEvaluation(Callback):
    def on_batch_begin(self, state):
        state.input = 2 * state.input


class Drops(Callback):
    """Counts batches and halves the rate every 4 of them, but forgets its count."""

    def __init__(self):
        self.count = 0

    def on_batch_begin(self, state):
        self.count += 1
        if state.is_train and self.count % 4 == 0:
            state.optimizer.param_groups[0]["lr"] *= 0.5

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        pass


class SavesAnObject(Drops):
    def state_dict(self):
        return {"count": slice(self.count)}


class HasNoState(Callback):
    def __init__(self):
        self.count = 0

    on_batch_begin = Drops.on_batch_begin


class OwnRandomness(Callback):
    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def on_batch_begin(self, state):
        if state.is_train:
            state.input = state.input + torch.randn(state.input.shape, generator=self.generator)


class ExpectsOneLoss(Callback):
    def on_loader_end(self, state):
        (self.meter,) = state.loss_meters.values()


class DropsLogs(Callback):
    def on_epoch_end(self, state):
        state.logs = {name: value for name, value in state.logs.items() if name.endswith("loss")}


class ExpectsANumber(Callback):
    def on_batch_end(self, state):
        if state.weight is not None:
            assert isinstance(state.weight, int), "the weight is not a number"


class ExpectsATarget(Callback):
    def on_batch_end(self, state):
        if state.is_train:
            self.samples = len(state.target)


class ExpectsTheLoss(Callback):
    def on_after_backward(self, state):
        assert state.loss is not None, "the loss is not set"


class ReplacesTheStep(Callback):
    def on_begin(self, state):
        state.make_step = lambda: None


class StepsTwice(Callback):
    def on_begin(self, state):
        step = state.make_step
        state.make_step = lambda: (step(), step())


class StaysOpen(Callback):
    is_open = False

    def on_loader_begin(self, state):
        assert not self.is_open, "it is still open"
        self.is_open = state.is_train

    def on_loader_end(self, state):
        self.is_open = False


class CountsEpochs(Callback):
    """Notes at the end of each epoch how many batches it had, but forgets those before an interruption."""

    def on_epoch_begin(self, state):
        self.count = 0

    def on_batch_end(self, state):
        self.count += state.is_train

    def on_epoch_end(self, state):
        state.logs["batches"] = self.count


@pytest.mark.parametrize(
    ("kind", "check", "error"),
    [
        (Typo, check_hooks, "expected on_batch_ended to be a hook"),
        (WantsMore, check_hooks, r"on_batch_end to take \(self, state\)"),
        (OnlyOnce, check_training, "has run before"),
        (Explodes, check_training, "weights are not finite with {'accumulate_steps': 3}"),
        (MixesInEvaluation, check_evaluation, "evaluate differs"),
        (ExpectsOneLoss, check_forward, "too many values to unpack"),
        (DropsLogs, check_forward, "the logs lack a loss"),
        (ExpectsANumber, check_forward, "the weight is not a number"),
        (ExpectsATarget, check_any_batch, "NoneType"),
        (ExpectsTheLoss, check_own_step, "the loss is not set"),
        (ReplacesTheStep, check_make_step, "expected 20 steps, got 0"),
        (StepsTwice, check_make_step, "expected 20 steps, got 40"),
        (Drops, check_state, "the loaded state is not the saved one"),
        (SavesAnObject, check_state, "slice"),
        (Drops, check_resume, "interrupted after checkpoint"),
        (HasNoState, check_resume, "interrupted after checkpoint"),
        (OwnRandomness, check_resume, "interrupted after checkpoint"),
        (StaysOpen, check_stop, "it is still open"),
        (CountsEpochs, check_stop, "stopped at"),
    ],
)
def test_a_callback_that_breaks_the_protocol_is_found(kind, check, error, tmp_path):
    with pytest.raises((AssertionError, TypeError, ValueError, pickle.UnpicklingError), match=error):
        check(CallbackCase(lambda folder: [kind()]), tmp_path)


def test_one_call_says_which_check_failed():
    with pytest.raises(AssertionError, match=r"(?s)^check_training: has run before.*in a second run"):
        check_callback(OnlyOnce())
    with pytest.raises(AssertionError, match=r"^check_hooks: expected on_batch_ended to be a hook"):
        check_callback(Typo())
    with pytest.raises(ValueError, match=r"expected skip to name some of check_hooks, check_training.*got check_all"):
        check_callback(Callback(), skip=["check_all"])
