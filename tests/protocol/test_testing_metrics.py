"""fit_core.testing finds metrics that break the protocol, and what differs between two processes."""

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
from fit_core.testing.metrics import (
    check_device,
    check_logs,
    check_metric_resume,
    check_metric_state,
    check_reset,
    check_split,
)


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


class WithoutName(Good):
    name = None


class SeveralValues(Good):
    def compute(self):
        return {"mean": super().compute(), "samples": self.count}


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
METRICS = {"Good": Good, "SeveralValues": SeveralValues, "MeanOverRanks": MeanOverRanks}


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
    for name in ("Good", "SeveralValues"):
        check_measures(MetricCase(METRICS[name], *SAMPLES), first[name], second[name])
    with pytest.raises(AssertionError):
        check_measures(MetricCase(Good, *SAMPLES), first["MeanOverRanks"], second["MeanOverRanks"])


def test_one_call_checks_a_callback_or_a_metric():
    check_callback(Callback())
    check_callback(Callback)
    check_callback(lambda folder: [Callback(), Callback()], skip=["check_any_batch"])
    check_metric(Good(), *SAMPLES)
    check_metric(Good, *SAMPLES, skip=["check_device"])
    check_metric(WithoutName, *SAMPLES)
    check_metric(SeveralValues, *SAMPLES)
