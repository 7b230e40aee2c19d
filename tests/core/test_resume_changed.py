"""A run that is resumed with other batches, steps, processes or precision: each sample once, and no step too many."""

import io
import warnings

import pytest
import torch
from fit_core import Callback, Runner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SAMPLES = torch.arange(64.0).view(64, 1)
DATA = TensorDataset(SAMPLES, 2 * SAMPLES)
LISTS = {size: [(part, part) for part in SAMPLES.split(size)] for size in (4, 8, 16)}


class Watch(Callback):
    """Notes the samples of each epoch, and keeps the state after a number of batches."""

    def __init__(self, stop_after=0):
        self.stop_after, self.seen, self.batches = stop_after, {}, 0

    def on_batch_end(self, state):
        self.seen.setdefault(state.epoch, []).extend(state.input.flatten().int().tolist())
        self.batches += 1
        state.should_stop = self.batches == self.stop_after

    def on_checkpoint(self, state):
        if self.batches == self.stop_after:
            self.save(state)

    def save(self, state):
        buffer = io.BytesIO()
        torch.save(state.state_dict(), buffer)
        self.saved = buffer.getvalue()


def make(*callbacks, **options):
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    return Runner(model, torch.optim.SGD(model.parameters(), lr=1e-5), nn.MSELoss(), [], callbacks, **options)


def stopped(loader, after, *, epochs=2, steps_per_epoch=None, **options):
    """Train until a batch, and return the watch with the state."""
    watch = Watch(after)
    make(watch, **options).fit(loader, epochs, steps_per_epoch=steps_per_epoch)
    return watch


def resumed(first, loader, *, epochs=2, processes=1, steps_per_epoch=None, match="with other settings", **options):
    """Resume it, and return the watch and the state of the run."""
    watch = Watch()
    runner = make(watch, **options)
    saved = torch.load(io.BytesIO(first.saved), weights_only=True)
    runner.state.load_state_dict({**saved, "ranks": saved["ranks"] * processes})
    torch.manual_seed(9)
    with pytest.warns(UserWarning, match=match):
        runner.fit(loader, epochs, steps_per_epoch=steps_per_epoch)
    return watch, runner.state


def shuffled(batch_size, **options):
    return DataLoader(DATA, batch_size, shuffle=True, **options)


@pytest.mark.parametrize(
    ("before", "after", "done", "left"), [(8, 4, 5, 6), (4, 8, 6, 5), (8, 16, 4, 2), (16, 4, 4, 0)]
)
def test_another_batch_size_has_each_sample_once(before, after, done, left):
    first = stopped(shuffled(before), done)
    place = f"after batch {done * before // after} of {64 // after}"
    second, state = resumed(
        first, shuffled(after), match=f"batch_size {before} -> {after}. The interrupted .* {place}$"
    )
    assert sorted(first.seen[0] + second.seen.get(0, [])) == list(range(64))
    assert len(second.seen.get(0, [])) == left * after
    assert sorted(second.seen[1]) == list(range(64))
    assert (state.samples_seen, state.global_step) == (128, done + left + 64 // after)


def test_samples_that_fill_no_batch_of_another_size_come_again():
    first = stopped(shuffled(4), 7)
    second, _ = resumed(first, shuffled(16))
    assert sorted(first.seen[0][:16] + second.seen[0]) == list(range(64))


def test_lists_of_other_batches_are_continued_at_the_same_share():
    second, state = resumed(stopped(LISTS[8], 6), LISTS[4], match="batches per epoch 8 -> 16. .* after batch 12 of 16")
    assert second.seen[0] == list(range(48, 64))
    assert state.global_step == 6 + 4 + 16


def test_fewer_steps_than_were_done_complete_the_epoch():
    first = stopped(LISTS[8], 5, steps_per_epoch=8)
    second, state = resumed(first, LISTS[8], steps_per_epoch=4, match="batches per epoch 8 -> 4. .* after batch 5 of 4")
    assert [row["epoch"] for row in state.history] == [1, 2]
    assert second.seen == {1: [*range(40, 64), *range(8)]}  # the loader is not started over


def test_more_steps_are_done_in_the_interrupted_epoch_too():
    second, state = resumed(stopped(LISTS[8], 3, steps_per_epoch=4), LISTS[8], steps_per_epoch=6)
    assert [len(second.seen[epoch]) // 8 for epoch in (0, 1)] == [3, 6]
    assert state.global_step == 12


def test_steps_of_other_batches_are_continued_at_the_same_sample():
    first = stopped(shuffled(8), 5, steps_per_epoch=8)
    second, state = resumed(first, shuffled(4), steps_per_epoch=16)
    assert sorted(first.seen[0] + second.seen[0]) == list(range(64))
    assert state.global_step == 5 + 6 + 16


@pytest.mark.parametrize(("before", "after"), [(None, 4), (4, None)])
def test_a_pass_and_a_number_of_steps_in_place_of_each_other(before, after):
    first = stopped(LISTS[8], 3, steps_per_epoch=before)
    second, _ = resumed(first, LISTS[8], steps_per_epoch=after)
    assert second.seen[0] == list(range(24, 32 if after else 64))
    assert len(second.seen[1]) == (32 if after else 64)


def test_the_batches_of_an_open_window_come_again():
    first = stopped(LISTS[4], 7, accumulate_steps=4)
    second, state = resumed(first, LISTS[4], accumulate_steps=2, match="steps 4 -> 2.*after batch 4 of 16.*of its rest")
    assert second.seen[0] == list(range(16, 64))
    assert state.global_step == 1 + 6 + 8
    assert state.samples_seen == 64 + 64

    by_hand, losses = make(accumulate_steps=2), []
    for batches, size in ((LISTS[4][:4], 4), (LISTS[4][4:], 2), (LISTS[4], 2)):
        for number in range(0, len(batches), size):
            by_hand.state.optimizer.zero_grad()
            for input, target in batches[number : number + size]:
                losses.append(by_hand.state.criterion(by_hand.state.model(input), target))
                (losses[-1] / size).backward()
            by_hand.state.optimizer.step()
    for parameter, other in zip(state.model.parameters(), by_hand.state.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, other)
    expected = [sum(part).item() / len(part) for part in (losses[4:16], losses[16:])]
    assert [row["train/loss"] for row in state.history] == pytest.approx(expected)


def test_a_change_after_a_whole_window_keeps_the_results_so_far():
    first = stopped(LISTS[4], 8, accumulate_steps=4)
    _, state = resumed(first, LISTS[4], accumulate_steps=2, match="after batch 8 of 16$")
    assert state.samples_seen == 64 + 64
    model = make().state.model
    losses = []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    for batches, size in ((LISTS[4][:8], 4), (LISTS[4][8:], 2)):
        for number in range(0, len(batches), size):
            optimizer.zero_grad()
            for input, target in batches[number : number + size]:
                losses.append(nn.functional.mse_loss(model(input), target))
                (losses[-1] / size).backward()
            optimizer.step()
    assert state.history[0]["train/loss"] == pytest.approx(sum(losses).item() / 16)


def test_the_samples_of_an_open_window_count_once_after_a_change_of_processes():
    first = stopped(shuffled(4), 7, accumulate_steps=4)  # 7 * 2 * 4 samples on two processes, of which 32 were stepped
    saved = torch.load(io.BytesIO(first.saved), weights_only=True)
    saved["samples_seen"] *= 2
    second = Watch(1)
    runner = make(second, accumulate_steps=4)
    runner.state.load_state_dict({**saved, "ranks": saved["ranks"] * 2})
    with pytest.warns(UserWarning, match="processes 2 -> 1"):
        runner.fit(shuffled(4), 2)
    assert runner.state.samples_seen == 32 + 4
    third, state = resumed(second, shuffled(4), accumulate_steps=2)  # The batch of its open window comes again.
    assert len(third.seen[0]) == 32
    assert state.samples_seen == 64 + 64


def test_an_epoch_whose_training_was_complete_stays_complete():
    class StopInValidation(Callback):
        def on_batch_begin(self, state):
            state.should_stop = not state.is_train

    watch = Watch(8)
    make(watch, StopInValidation()).fit(LISTS[8], 2, val_loader=LISTS[8])
    second, state = resumed(watch, LISTS[4])
    assert 0 not in second.seen
    assert len(second.seen[1]) == 64
    assert state.global_step == 8 + 16


@pytest.mark.parametrize("batch_size", [5, 16])
def test_after_the_last_batch_the_next_epoch_has_the_same_order(batch_size):
    def own_generator(size):
        return shuffled(size, generator=torch.Generator().manual_seed(3))

    make(whole := Watch()).fit(own_generator(8), 2)
    second, _ = resumed(stopped(own_generator(8), 8), own_generator(batch_size))
    assert second.seen == {1: whole.seen[1]}


@pytest.mark.parametrize("epochs_done", [0, 1])
def test_fewer_processes_take_the_steps_that_are_left(epochs_done):
    first = stopped(LISTS[8], 6 + 8 * epochs_done)
    text = "processes 2 -> 1. The interrupted epoch continues after batch 6 of 8. The random states of other"
    second, state = resumed(first, LISTS[8], processes=2, match=text)
    assert len(second.seen[epochs_done]) == 16
    assert state.global_step == 16
    assert len(state.history) == 2


def test_fewer_processes_have_each_sample_of_a_shared_order_once():
    order = []

    class HalfSampler(torch.utils.data.Sampler):
        """Every second index of an order, as on the first of two processes."""

        def __iter__(self):
            order.extend(torch.utils.data.RandomSampler(DATA))
            return iter(order[::2])

        def __len__(self):
            return 32

    first = stopped(DataLoader(DATA, 8, sampler=HalfSampler()), 3)
    other = order[1::2][:24]  # of the second process
    second, _ = resumed(first, DataLoader(DATA, 8, sampler=torch.utils.data.RandomSampler(DATA)), processes=2)
    assert sorted(first.seen[0] + other + second.seen[0]) == list(range(64))


@pytest.mark.parametrize("stop_after", [3, 8, "between epochs"])
def test_fewer_processes_have_the_later_epochs_in_the_same_order(stop_after):
    make(whole := Watch()).fit(shuffled(8), 2)
    if stop_after == "between epochs":
        runner = make(first := Watch())
        runner.fit(shuffled(8), 1)
        first.save(runner.state)
    else:
        first = stopped(shuffled(8), stop_after)
    second, _ = resumed(first, shuffled(8), processes=2)
    assert second.seen[1] == whole.seen[1]


def test_a_window_that_comes_again_as_the_first_of_an_epoch_has_the_same_order():
    make(whole := Watch(), accumulate_steps=2).fit(shuffled(4), 2)
    first = stopped(shuffled(4), 17, accumulate_steps=2)
    second, _ = resumed(first, shuffled(8), processes=2, accumulate_steps=1)
    assert second.seen[1] == whole.seen[1]


@pytest.mark.parametrize("fp16_first", [False, True])
def test_another_precision_is_named(fp16_first):
    first = stopped(LISTS[8], 3, use_fp16=fp16_first)
    text = "autocast float16 -> off" if fp16_first else "autocast off -> float16"
    _, state = resumed(first, LISTS[8], use_fp16=not fp16_first, match=text)
    assert state.global_step == 16
    assert state.grad_scaler.is_enabled() != fp16_first


def test_weights_of_another_dtype_are_named():
    watch = Watch()
    runner = make(watch)
    runner.state.model.double()
    runner.state.load_state_dict(torch.load(io.BytesIO(stopped(LISTS[8], 3).saved), weights_only=True))
    double = [(input.double(), target.double()) for input, target in LISTS[8]]
    with pytest.warns(UserWarning, match="dtype float32 -> float64"):
        runner.fit(double, 2)


class Counter(Callback):
    def __init__(self):
        self.count = 0

    def on_batch_end(self, state):
        self.count += state.is_train

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]


class Renamed(Counter):
    pass


class Average:
    """A metric that can be saved."""

    def reset(self):
        self.total = 0

    def update(self, output, target):
        self.total += len(output)

    def compute(self):
        return self.total

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state_dict):
        self.total = state_dict["total"]


def test_callbacks_and_metrics_that_are_new_or_gone_are_named():
    watch = Watch(3)
    make(watch, Counter()).fit(LISTS[8], 2)
    runner = make(Renamed())
    runner.state.metrics.append(Average())
    runner.state.load_state_dict(torch.load(io.BytesIO(watch.saved), weights_only=True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = runner.fit(LISTS[8], 2)
    callbacks, metrics = (str(warning.message) for warning in caught)
    assert callbacks.endswith("callbacks: Renamed starts from scratch, and the saved state of Counter is not used")
    assert metrics == "Average of the interrupted epoch will miss the batches before the interruption. It is new"
    assert [row["train/Average"] for row in history] == [40, 64]
