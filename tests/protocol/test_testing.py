"""Check that fit_core.testing finds what breaks the protocol. Each class here breaks it in one way."""

import pickle

import pytest
import torch
from fit_core import Callback
from fit_core.testing import (
    CallbackCase,
    MetricCase,
    check_callback,
    check_measures,
    check_metric,
    check_ranks,
    in_two_processes,
    measure_on_rank,
    train_on_rank,
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
from fit_core.testing.metrics import (
    check_device,
    check_logs,
    check_metric_resume,
    check_metric_state,
    check_reset,
    check_split,
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
        (Typo, check_hooks, "on_batch_ended is not a hook"),
        (WantsMore, check_hooks, r"on_batch_end must take \(self, state\)"),
        (OnlyOnce, check_training, "has run before"),
        (Explodes, check_training, "weights are not finite with {'accumulate_steps': 3}"),
        (MixesInEvaluation, check_evaluation, "evaluate differs"),
        (ExpectsOneLoss, check_forward, "too many values to unpack"),
        (DropsLogs, check_forward, "the logs lack a loss"),
        (ExpectsANumber, check_forward, "the weight is not a number"),
        (ExpectsATarget, check_any_batch, "NoneType"),
        (ExpectsTheLoss, check_own_step, "the loss is not set"),
        (ReplacesTheStep, check_make_step, "20 batches, and the step was called 0x"),
        (StepsTwice, check_make_step, "20 batches, and the step was called 40x"),
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


class Good:
    """The mean of the target. Each of the others differs from it in one thing."""

    name = "mean"

    def __init__(self):
        self.reset()

    def to(self, device):
        self.sum, self.count = self.sum.to(device), self.count

    def reset(self):
        self.sum, self.count = torch.zeros((), dtype=torch.float64), 0

    def update(self, output, target):
        self.sum = self.sum.to(target.device) + target.double().sum()
        self.count += len(target)

    def compute(self):
        return self.sum / self.count

    def all_reduce(self):
        both = torch.stack([self.sum, torch.tensor(float(self.count), dtype=torch.float64)])
        torch.distributed.all_reduce(both)
        self.sum, self.count = both

    def state_dict(self):
        return {"sum": self.sum, "count": self.count}

    def load_state_dict(self, state_dict):
        self.sum, self.count = state_dict["sum"], state_dict["count"]


class MeanOfMeans(Good):
    def update(self, output, target):
        super().update(output, target.double().mean()[None])


class ForgetsWhenAsked(Good):
    def compute(self):
        value = super().compute()
        self.reset()
        return value


class RemembersAfterReset(Good):
    def reset(self):
        if not hasattr(self, "sum"):
            super().reset()


class SharesItsState(Good):
    def update(self, output, target):
        self.sum += target.double().sum().to(self.sum.device)
        self.count += len(target)


class ReadsBack(Good):
    def update(self, output, target):
        self.sum = self.sum + target.double().sum().item()
        self.count += len(target)


class WantsGradients(Good):
    def update(self, output, target):
        if torch.is_grad_enabled():
            super().update(output, target)


class LosesItsState(Good):
    def load_state_dict(self, state_dict):
        pass


class MeanOverRanks(Good):
    def all_reduce(self):
        self.sum, self.count = self.sum / max(self.count, 1), 1
        super().all_reduce()


G = torch.Generator().manual_seed(0)
SAMPLES = torch.randn(40, 3, generator=G), torch.randn(40, generator=G)


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (MeanOfMeans, check_split),
        (ForgetsWhenAsked, check_reset),
        (RemembersAfterReset, check_reset),
        (SharesItsState, check_metric_state),
        (LosesItsState, check_metric_state),
        (ReadsBack, check_device),
        (WantsGradients, check_logs),
        (LosesItsState, check_metric_resume),
    ],
)
def test_a_metric_that_breaks_the_protocol_is_found(kind, check, tmp_path):
    check(MetricCase(Good, *SAMPLES), tmp_path)
    with pytest.raises((AssertionError, RuntimeError)):
        check(MetricCase(kind, *SAMPLES), tmp_path)


class Prints(Callback):
    def on_epoch_end(self, state):
        print("an epoch")


class Writes(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_end(self, state):
        self.folder.mkdir(parents=True)
        (self.folder / "done").touch()


class GoesItsOwnWay(Callback):
    def on_before_step(self, state):
        for parameter in state.model.parameters():
            parameter.grad.clamp_(-0.1 / (1 + state.rank), 0.1)


CALLBACKS = {
    "Callback": lambda folder: [Callback()],
    "Prints": lambda folder: [Prints()],
    "Writes": lambda folder: [Writes(folder)],
    "GoesItsOwnWay": lambda folder: [GoesItsOwnWay()],
}
METRICS = {"Good": Good, "MeanOverRanks": MeanOverRanks}


def on_a_rank(rank, folder):
    trained = {name: train_on_rank(CallbackCase(make), rank, folder / name) for name, make in CALLBACKS.items()}
    return {**trained, **{name: measure_on_rank(MetricCase(make, *SAMPLES), rank) for name, make in METRICS.items()}}


def test_what_differs_between_two_processes_is_found(tmp_path):
    first, second = in_two_processes(on_a_rank, tmp_path)
    check_ranks(first["Callback"], second["Callback"])
    for name, error in {"Prints": "has printed", "Writes": "has written", "GoesItsOwnWay": "differ in weights"}.items():
        with pytest.raises(AssertionError, match=error):
            check_ranks(first[name], second[name])
    with pytest.raises(AssertionError, match="differ in epochs"):
        check_ranks(first["Callback"], {**second["Callback"], "epochs": 2})
    check_measures(MetricCase(Good, *SAMPLES), first["Good"], second["Good"])
    with pytest.raises(AssertionError):
        check_measures(MetricCase(Good, *SAMPLES), first["MeanOverRanks"], second["MeanOverRanks"])


def test_one_call_checks_a_callback_or_a_metric():
    check_callback(Callback())
    check_callback(Callback)
    check_callback(lambda folder: [Callback(), Callback()], skip=["check_any_batch"])
    check_metric(Good(), *SAMPLES)
    check_metric(Good, *SAMPLES, skip=["check_device"])


def test_one_call_says_which_check_failed():
    with pytest.raises(AssertionError, match=r"(?s)^check_training: has run before.*and a second one with the same"):
        check_callback(OnlyOnce())
    with pytest.raises(AssertionError, match=r"^check_hooks: on_batch_ended is not a hook"):
        check_callback(Typo())
    with pytest.raises(ValueError, match="skip names check_all, expected some of check_hooks, check_training"):
        check_callback(Callback(), skip=["check_all"])
