"""Schedules of a run that is resumed inside an epoch with other batches end with the run."""

import math

import pytest
from fit_callbacks import LRScheduler, Phase, PhasesScheduler
from scene import Snapshots, Watch, batches, load, lr_of, make
from torch.optim.lr_scheduler import OneCycleLR


def resume(saved, callback, loader):
    """The learning rates of the steps of a run that was saved, and of those of its rest."""
    used = Watch("on_before_step", lr_of)
    runner = make(callback, used)
    runner.state.load_state_dict(load(saved))
    runner.fit(loader, epochs=2)
    return used.seen


@pytest.mark.filterwarnings("ignore:the run is resumed with other settings")
@pytest.mark.parametrize("size", [2, 8])
def test_one_cycle_takes_the_steps_that_are_left(size):
    def one_cycle():
        return LRScheduler(lambda optimizer, steps: OneCycleLR(optimizer, 0.5, total_steps=steps))

    saved = Snapshots()
    make(one_cycle(), saved).fit(batches((4,) * 8), epochs=2)
    left = 32 // size - 12 // size + 32 // size
    with pytest.warns(UserWarning, match=f"made for 16 steps and is resumed for {3 + left}"):
        rates = resume(saved.saved[2], one_cycle(), batches((size,) * (32 // size)))
    assert len(rates) == left
    assert rates[-1] == pytest.approx(0.5 / 25 / 1e4)  # the last of the cycle


@pytest.mark.filterwarnings("ignore:the run is resumed with other settings")
def test_phases_are_those_of_the_epoch():
    def phases():
        return PhasesScheduler([Phase(0, 1, 1.0), Phase(1, 2, (0.5, 0.1))])

    saved = Snapshots()
    make(phases(), saved).fit(batches((4,) * 4), epochs=2)
    rates = resume(saved.saved[1], phases(), batches((2,) * 8))
    assert rates[:4] == [1.0] * 4
    by_hand = [0.1 + 0.4 * (1 - step / 7) for step in range(8)]
    assert all(math.isclose(rate, expected) for rate, expected in zip(rates[4:], by_hand, strict=True))


@pytest.mark.filterwarnings("ignore:the run is resumed with other settings")
def test_other_phases_and_factors_are_used_and_named():
    def phases(lr, factor):
        return PhasesScheduler([Phase(0, 3, lr)], factors=[factor])

    saved = Snapshots()
    make(phases(1.0, 1.0), saved).fit(batches((4,) * 4), epochs=2)
    with pytest.warns(UserWarning, match=r"resumed with other factors: 1.0 -> 0.5$"):
        assert resume(saved.saved[4], phases(1.0, 0.5), batches((4,) * 4)) == [0.5] * 4
    with pytest.warns(UserWarning, match=r"resumed with other phases: Phase\(.*lr=1.0.*\) -> Phase\(.*lr=0.2"):
        assert resume(saved.saved[4], phases(0.2, 1.0), batches((4,) * 4)) == [0.2] * 4
