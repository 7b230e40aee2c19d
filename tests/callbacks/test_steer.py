"""The small callbacks that steer: dropout, the optimizer's state, one batch, a loss that is not finite, one rank."""

import math

import pytest
import torch
from fit_callbacks import (
    AdaptiveGradientClipping,
    BatchOverfit,
    Freeze,
    ResetOptimizer,
    ScheduledDropout,
    StopOnNonFinite,
    rank_zero_only,
)
from fit_core import Callback
from scene import Watch, batches, make
from torch import nn


def test_dropout_goes_from_start_to_end():
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.7), nn.Dropout(0.7))
    seen = Watch("on_batch_begin", lambda state: (state.model[1].p, state.model[2].p))
    make(seen, ScheduledDropout(0.1, 0.5, epochs=3, names=("1",)), model=model).fit(batches((4,)), epochs=4)
    assert [rate for rate, _ in seen.seen] == pytest.approx([0.1, 0.3, 0.5, 0.5])
    assert {other for _, other in seen.seen} == {0.7}
    make(ScheduledDropout(0.1, 0.5), model=model).fit(batches((4,)), epochs=2)
    assert (model[1].p, model[2].p) == (0.5, 0.5)


def test_dropout_that_is_not_there():
    with pytest.raises(ValueError, match=r"names that match dropout layers, got head\. Pass the start of one of 3"):
        make(ScheduledDropout(0, 0.5, names="head")).fit(batches())
    with pytest.raises(ValueError, match="expected end to be 0 or more and at most 1, got 50"):
        ScheduledDropout(0, 50)


def test_the_optimizer_forgets_after_given_epochs():
    seen = Watch("on_epoch_begin", lambda state: len(state.optimizer.state))
    make(seen, ResetOptimizer([1, 3]), model=nn.Linear(6, 3)).fit(batches(), epochs=5)
    assert seen.seen == [0, 0, 2, 0, 2]
    with pytest.raises(ValueError, match="expected after to be 1 or more, got 0"):
        ResetOptimizer(0)


def test_one_batch_is_learned_by_heart():
    inputs = Watch("on_batch_end", lambda state: (state.is_train, state.input, state.batch_size))
    runner = make(BatchOverfit(), inputs, model=nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3)))
    history = runner.fit(batches(), epochs=30, val_loader=batches(seed=1))
    assert all(torch.equal(input, batches()[0][0]) and size == 8 for train, input, size in inputs.seen if train)
    assert [len(input) for train, input, _ in inputs.seen[:10] if not train] == [8, 8, 8, 8, 5]
    assert history[-1]["train/loss"] < 0.05


def test_two_batches_take_turns():
    sizes = Watch("on_batch_end", lambda state: state.batch_size)
    make(BatchOverfit(2), sizes).fit(batches((8, 3, 4, 4, 4)), epochs=2)
    assert sizes.seen == [8, 3, 8, 3, 8, 3, 8, 3, 8, 3]


def test_a_kept_batch_keeps_its_weight():
    class Tokens(Callback):
        def on_batch_begin(self, state):
            state.weight = 10 * (state.batch_idx + 1)

    weights = Watch("on_batch_end", lambda state: state.weight)
    make(Tokens(), BatchOverfit(2), weights).fit(batches())
    assert weights.seen == [10, 20, 10, 20, 10]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_loss_that_is_not_finite_ends_the_run_before_the_step(value, accumulate_steps):
    data = batches()
    data[3][0][:] = value
    model = nn.Linear(6, 3)
    steps = Watch("on_batch_end", lambda state: [p.detach().clone() for p in state.model.parameters()])
    runner = make(steps, StopOnNonFinite(), model=model, accumulate_steps=accumulate_steps)
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in epoch 1, batch 4 \(after \d"):
        runner.fit(data)
    assert all(map(torch.equal, model.parameters(), steps.seen[-1]))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_without_the_callback_the_line_of_the_epoch_shows_nan():
    data = batches()
    data[3][0][:] = math.nan
    assert math.isnan(make(model=nn.Linear(6, 3)).fit(data)[0]["train/loss"])


def test_rank_zero_only_asks_in_each_hook(monkeypatch):
    class Note(Callback):
        def __init__(self):
            self.ran = 0

        def on_epoch_end(self, state):
            self.ran += 1

        def state_dict(self):
            return {"ran": self.ran}

        def load_state_dict(self, state_dict):
            self.ran = state_dict["ran"]

    guarded, plain, decorated = rank_zero_only(Note()), Note(), rank_zero_only(Note)()
    runner = make(guarded, plain, decorated)
    runner.fit(batches(), epochs=2)
    assert "on_epoch_end              Note, Note, Note" in str(runner)
    assert list(runner.state.state_dict()["callbacks"]) == ["Note", "Note.1", "Note.2"]
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    runner.fit(batches(), epochs=3)
    assert (guarded.ran, plain.ran, decorated.ran) == (2, 5, 2)
    assert isinstance(guarded, Note)


def test_a_batch_from_a_checkpoint_is_moved_to_the_device():
    saved = {"kept": [[{"image": torch.ones(2, 3)}, torch.ones(2), 2, None]], "next": 0}
    callback, state = BatchOverfit(), make().state
    state.is_train, state.device = True, torch.device("meta")
    callback.load_state_dict(saved)
    callback.on_batch_begin(state)
    assert state.input["image"].device == state.target.device == state.device
    assert (state.batch_size, state.weight) == (2, None)


class HasModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))

    def forward(self, input):
        return self.module(input)


@pytest.mark.parametrize(
    "callback",
    [
        lambda: Freeze("module.0.bias"),
        lambda: AdaptiveGradientClipping(exclude="module."),
        lambda: ScheduledDropout(0.0, 0.1, names=("module.",)),
    ],
)
@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_a_part_of_the_model_may_be_called_module(callback, wrap):
    make(callback(), model=wrap(HasModule())).fit(batches((4,)))
