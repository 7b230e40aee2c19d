"""Callbacks that steer: what they do to a run equals the formula, written out here."""

import math

import pytest
import torch
from fit_callbacks import (
    AdaptiveGradientClipping,
    BatchOverfit,
    EarlyStopping,
    GradientClipping,
    LRScheduler,
    Phase,
    PhasesScheduler,
    ReduceLROnPlateau,
    ResetOptimizer,
    ScheduledDropout,
    StopOnNonFinite,
    rank_zero_only,
)
from fit_core import Callback, Runner
from scene import Snapshots, Watch, batches, load, make, network
from torch import nn
from torch.optim import lr_scheduler


def lr_of(state):
    return state.optimizer.param_groups[0]["lr"]


class Logs(Callback):
    """Puts given values into the logs, an epoch each."""

    def __init__(self, **values):
        self.values = values

    def on_epoch_end(self, state):
        for name, values in self.values.items():
            state.logs[name] = values[state.epoch]


# LRScheduler


@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_scheduler_is_stepped_after_each_optimizer_step(accumulate_steps):
    used = Watch("on_before_step", lr_of)
    runner = make(used, accumulate_steps=accumulate_steps)
    runner.state.callbacks.append(LRScheduler(lr_scheduler.ExponentialLR(runner.state.optimizer, 0.5)))
    runner.fit(batches(), epochs=2)
    assert used.seen == [0.1 * 0.5**step for step in range(2 * -(-5 // accumulate_steps))]


def test_a_scheduler_is_stepped_after_each_epoch():
    used = Watch("on_epoch_begin", lr_of)
    runner = make(used)
    runner.state.callbacks.append(LRScheduler(lr_scheduler.StepLR(runner.state.optimizer, 2), interval="epoch"))
    runner.fit(batches(), epochs=5)
    assert used.seen == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def test_a_scheduler_that_is_made_is_told_the_steps_of_the_run():
    used = Watch("on_before_step", lr_of)

    def one_cycle(optimizer, steps):
        return lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=steps + 1)

    make(used, LRScheduler(one_cycle), accumulate_steps=2).fit(batches(), epochs=3)
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1, momentum=0.9)
    by_hand, expected = lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=10), []
    for _ in range(9):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        by_hand.step()
    assert used.seen == expected


def test_a_schedule_that_needs_the_total_says_what_to_pass():
    schedule = LRScheduler(lambda optimizer, steps: lr_scheduler.LinearLR(optimizer, total_iters=steps))
    with pytest.raises(ValueError, match="has no len: pass steps_per_epoch"):
        make(schedule).fit(iter(batches()))


def test_a_scheduler_is_not_stepped_when_the_scaler_skipped():
    class Overflow(Callback):
        def on_after_backward(self, state):
            if state.batch_idx in (1, 2):
                next(state.model.parameters()).grad.fill_(torch.inf)

    runner = make(Overflow(), use_fp16=True)
    scheduler = lr_scheduler.ExponentialLR(runner.state.optimizer, 0.5)
    runner.state.callbacks.append(LRScheduler(scheduler))
    runner.fit(batches(), epochs=2)
    assert scheduler.last_epoch == 2 * 5 - 2 * 2


def test_schedulers_that_do_not_fit_are_refused():
    other = torch.optim.SGD(network().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="another optimizer than the Runner's"):
        make(LRScheduler(lr_scheduler.StepLR(other, 1))).fit(batches())
    with pytest.raises(ValueError, match="interval must be 'step' or 'epoch', got 'batch'"):
        LRScheduler(lr_scheduler.StepLR(other, 1), interval="batch")
    with pytest.raises(ValueError, match=r"use fit_callbacks.ReduceLROnPlateau"):
        LRScheduler(lr_scheduler.ReduceLROnPlateau(other))


# ReduceLROnPlateau


def test_a_plateau_reduces_as_torch_does():
    values = [1.0, 0.9, 0.95, 0.91, 0.92, 0.93, math.nan, 0.8, 0.85, 0.85, 0.85, 0.85]
    used = Watch("on_epoch_begin", lr_of)
    plateau = ReduceLROnPlateau("value", "min", factor=0.5, patience=1, cooldown=1, min_lr=0.02)
    make(Logs(value=values), plateau, used).fit(batches(), epochs=12)
    optimizer, expected = torch.optim.SGD([torch.zeros(1)], lr=0.1), []
    torchs = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, cooldown=1, min_lr=0.02)
    for value in values:
        expected.append(optimizer.param_groups[0]["lr"])
        torchs.step(value)
    assert used.seen == expected
    assert expected[-1] < 0.1 / 2


def test_each_group_has_a_least_rate_of_its_own():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "lr": 0.4}]
    plateau = ReduceLROnPlateau("value", "min", factor=0.1, patience=0, min_lr=[0.03, 0.02])
    optimizer = torch.optim.SGD(groups, lr=0.1)
    Runner(model, optimizer, nn.CrossEntropyLoss(), (), [Logs(value=[1.0] * 5), plateau]).fit(batches(), epochs=5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.03, 0.02]
    with pytest.raises(ValueError, match=r"one min_lr for each of the optimizer's 1 parameter groups, got 2\. Pass as"):
        make(ReduceLROnPlateau(min_lr=[0.1, 0.2])).fit(batches())


def test_a_plateau_refuses_wrong_options_at_once():
    with pytest.raises(TypeError, match="patiense"):
        ReduceLROnPlateau(patiense=3)
    with pytest.raises(ValueError, match=r"factor must be above 0 and below 1, got 2\.0"):
        ReduceLROnPlateau(factor=2.0)


# PhasesScheduler


def test_phases_reach_their_ends_exactly():
    used = Watch("on_before_step", lr_of)
    phases = [Phase(0, 1, (0.0, 0.4)), Phase(1, 3, (0.4, 0.1), "cos"), Phase(3, 4, (0.1, 0.0), "poly", power=2)]
    make(used, PhasesScheduler(phases)).fit(batches(), epochs=4)
    warm = [0.4 * i / 4 for i in range(5)]
    cos = [0.1 + 0.3 * (1 + math.cos(math.pi * i / 9)) / 2 for i in range(10)]
    poly = [0.1 * (1 - i / 4) ** 2 for i in range(5)]
    assert used.seen == pytest.approx(warm + cos + poly, abs=1e-15)
    assert [used.seen[i] for i in (0, 4, 5, 14, 15, 19)] == [0.0, 0.4, 0.4, 0.1, 0.1, 0.0]


def test_phases_know_groups_and_accumulation_and_parts_of_an_epoch():
    model = network()
    groups = [{"params": model[0].parameters()}, {"params": [*model[1].parameters(), *model[4].parameters()]}]
    runner = make(PhasesScheduler([Phase(0, 0.5, 0.3), Phase(0.5, 2, (0.3, 0.0))], factors=[1, 0.1]), model=model)
    runner.state.optimizer = torch.optim.SGD(groups, lr=1.0)
    runner.state.accumulate_steps = 2
    used = Watch("on_before_step", lambda state: [group["lr"] for group in state.optimizer.param_groups])
    runner.state.callbacks.append(used)
    runner.fit(batches((4,) * 8), epochs=2)
    expected = [0.3, 0.3, *(0.3 * (1 - i / 5) for i in range(6))]
    assert [lr for lr, _ in used.seen] == pytest.approx(expected)
    assert [lr for _, lr in used.seen] == pytest.approx([lr / 10 for lr in expected])


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([Phase(0, 2, 0.1), Phase(3, 4, 0.1)], "a gap between epochs 2 and 3: expected a phase that starts at 2"),
        ([Phase(0, 2, 0.1), Phase(1, 4, 0.1)], "an overlap between epochs 1 and 2"),
        ([Phase(1, 2, 0.1)], "a gap between epochs 0 and 1"),
        ([], "phases is empty"),
    ],
)
def test_gaps_and_overlaps_are_refused(phases, message):
    with pytest.raises(ValueError, match=message):
        PhasesScheduler(phases)


def test_phases_that_do_not_fit_the_run_are_refused():
    with pytest.raises(ValueError, match="the phases end with epoch 2, the run has 3"):
        make(PhasesScheduler([Phase(0, 2, 0.1)])).fit(batches(), epochs=3)
    with pytest.raises(ValueError, match=r"got 2 factors and 1 parameter groups\. Make all groups before fit"):
        make(PhasesScheduler([Phase(0, 2, 0.1)], factors=[1, 2])).fit(batches())
    with pytest.raises(ValueError, match="mode must be one of linear, cos, poly, got 'cosine'"):
        Phase(0, 1, 0.1, "cosine")
    with pytest.raises(ValueError, match="end must be above 2, got 2"):
        Phase(2, 2, 0.1)


# Clipping


def train_by_hand(clip, epochs=1, accumulate=1):
    model, norms = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for input, target in batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(input), target).backward()
            norms.append(clip(model))
            optimizer.step()
    return model, norms


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("bound", "norm_type"), [(0.3, 2.0), (0.05, math.inf)])
def test_clipping_by_norm_equals_the_loop_by_hand(bound, norm_type):
    runner = make(GradientClipping(bound, norm_type=norm_type))
    history = runner.fit(batches())
    model, norms = train_by_hand(lambda model: nn.utils.clip_grad_norm_(model.parameters(), bound, norm_type))
    assert same(runner.state.model, model)
    assert history[0]["grad_norm"] == pytest.approx(float(torch.stack(norms).mean()), rel=1e-6)
    assert max(norms) > bound


def test_clipping_by_value_equals_the_loop_by_hand():
    runner = make(GradientClipping(value=0.01))
    runner.fit(batches())
    model, _ = train_by_hand(lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.01))
    assert same(runner.state.model, model)


def test_clipping_twice_unscales_once():
    both = make(GradientClipping(0.3), GradientClipping(value=0.01), use_fp16=True)
    both.fit(batches(), epochs=2)

    class Both(Callback):
        def on_before_step(self, state):
            nn.utils.clip_grad_norm_(state.model.parameters(), 0.3)
            nn.utils.clip_grad_value_(state.model.parameters(), 0.01)

    one = make(Both(), use_fp16=True)
    one.fit(batches(), epochs=2)
    assert same(both.state.model, one.state.model)


def test_a_skipped_step_does_not_spoil_the_logged_norm():
    class Overflow(Callback):
        def on_after_backward(self, state):
            if state.batch_idx == 1:
                next(state.model.parameters()).grad.fill_(torch.inf)

    history = make(Overflow(), GradientClipping(0.3), use_fp16=True).fit(batches())
    assert 0 < history[0]["grad_norm"] < 10


def test_adaptive_clipping_equals_the_papers_formula():
    clip, eps = 0.02, 1e-3

    def by_the_paper(model):
        for name, parameter in model.named_parameters():
            if name.startswith("4."):
                continue
            units = [(parameter, parameter.grad)]
            if parameter.dim() > 1:
                units = list(zip(parameter, parameter.grad, strict=True))
            for weight, gradient in units:
                limit = clip * max(float(weight.detach().norm()), eps)
                if float(gradient.norm()) > limit:
                    gradient *= limit / gradient.norm()

    runner = make(AdaptiveGradientClipping(clip, eps=eps, exclude=["4."]))
    runner.fit(batches())
    model, _ = train_by_hand(by_the_paper)
    for ours, theirs in zip(runner.state.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    unclipped, _ = train_by_hand(lambda model: None)
    assert not same(model, unclipped)


def test_gradients_of_another_optimizer_are_not_clipped():
    """Those of the second of two optimizers are not complete when the first steps, and still scaled in fp16."""

    class TwoSteps(Runner):
        def _make_step(self):
            state = self.state
            state.loss = state.criterion(state.model(state.input), state.target)
            state.loss.backward()
            untouched = state.model[4].weight.grad.clone()
            self.optimizer_step(first)
            assert torch.equal(state.model[4].weight.grad, untouched)
            self.optimizer_step(second)
            assert not torch.equal(state.model[4].weight.grad, untouched)

    model = network()
    first, second = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[:4], model[4:]))
    both = torch.optim.SGD(model.parameters(), lr=0.1)
    runner = TwoSteps(model, both, nn.CrossEntropyLoss(), callbacks=[AdaptiveGradientClipping(1e-4)])
    runner.fit(batches()[:1])


def test_clipping_refuses_what_means_nothing():
    with pytest.raises(ValueError, match="either max_norm or value"):
        GradientClipping()
    with pytest.raises(ValueError, match="either max_norm or value"):
        GradientClipping(1.0, value=1.0)
    with pytest.raises(ValueError, match="above 0, got -1"):
        GradientClipping(-1)
    assert AdaptiveGradientClipping(exclude="fc").exclude == ("fc",)
    with pytest.raises(ValueError, match=r"exclude names 'fc', which no parameter begins with; there are 0.weight"):
        make(AdaptiveGradientClipping(exclude=["fc"])).fit(batches())


# EarlyStopping


@pytest.mark.parametrize("mode", ["min", "max"])
def test_early_stopping_counts_epochs_without_improvement(mode, capsys):
    values = [5.0, 4.0, 4.2, math.nan, 3.95, 3.0, 3.0, math.inf, 3.5, 1.0]
    sign = 1 if mode == "min" else -1
    stopper = EarlyStopping("value", mode, patience=3, min_delta=0.1)
    history = make(Logs(value=[sign * value for value in values]), stopper).fit(batches(), epochs=10)
    # 4.0 is best until 3.95, which is not enough better: the third epoch in a row
    assert len(history) == 5
    assert "EarlyStopping: stopped after epoch 5. value was best at" in capsys.readouterr().out


def test_early_stopping_waits_again_after_an_improvement():
    values = [5.0, 4.0, 4.2, math.nan, 3.0, 3.0, math.inf, 3.5, 1.0]
    assert len(make(Logs(value=values), EarlyStopping("value", "min", patience=3)).fit(batches(), epochs=9)) == 8


def test_epochs_without_validation_do_not_count():
    runner = make(EarlyStopping(patience=2), lr=0.0, model=nn.Linear(6, 3))
    history = runner.fit(batches(), epochs=20, val_loader=batches(), validate_every=3)
    assert len(history) == 9  # best in epoch 3, not better in 6 and 9


def test_monitoring_validation_without_one_is_refused_before_the_first_step():
    steps = Watch("on_batch_end", lambda state: state.batch_idx)
    with pytest.raises(ValueError, match=r"pass val_loader=... to fit, or monitor 'train/loss'"):
        make(steps, EarlyStopping("val/loss")).fit(batches())
    assert steps.seen == []


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match=r"mode must be 'min' .* got 'maximum'"):
        EarlyStopping("loss", "maximum")
    with pytest.raises(ValueError, match="patience must be 1 or more, got 0"):
        EarlyStopping(patience=0)
    with pytest.raises(ValueError, match="min_delta must be 0 or more"):
        EarlyStopping(min_delta=-1)


def test_a_run_that_was_stopped_stays_so_when_resumed_unless_patience_grows():
    def run(patience, saved=None):
        snapshots = Snapshots()
        runner = make(EarlyStopping("value", "min", patience=patience), Logs(value=[1.0] * 6), snapshots)
        runner.state.callbacks.reverse()
        if saved:
            runner.state.load_state_dict(load(saved))
        return runner.fit(batches((4,)), epochs=6), snapshots.saved

    history, saved = run(2)
    assert len(history) == 3
    assert run(2, saved[-1])[0] == history
    assert len(run(3, saved[-1])[0]) == 4


# The small ones


def test_dropout_goes_from_start_to_end():
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.7), nn.Dropout(0.7))
    seen = Watch("on_batch_begin", lambda state: (state.model[1].p, state.model[2].p))
    make(seen, ScheduledDropout(0.1, 0.5, epochs=3, names=("1",)), model=model).fit(batches((4,)), epochs=4)
    assert [rate for rate, _ in seen.seen] == pytest.approx([0.1, 0.3, 0.5, 0.5])
    assert {other for _, other in seen.seen} == {0.7}
    make(ScheduledDropout(0.1, 0.5), model=model).fit(batches((4,)), epochs=2)
    assert (model[1].p, model[2].p) == (0.5, 0.5)


def test_dropout_that_is_not_there():
    with pytest.raises(ValueError, match=r"no dropout layer is called head\.\.\.; there are: 3"):
        make(ScheduledDropout(0, 0.5, names="head")).fit(batches())
    with pytest.raises(ValueError, match="end must be 0 or more and at most 1, got 50"):
        ScheduledDropout(0, 50)


def test_the_optimizer_forgets_after_given_epochs():
    seen = Watch("on_epoch_begin", lambda state: len(state.optimizer.state))
    make(seen, ResetOptimizer([1, 3]), model=nn.Linear(6, 3)).fit(batches(), epochs=5)
    assert seen.seen == [0, 0, 2, 0, 2]
    with pytest.raises(ValueError, match="after must be 1 or more, got 0"):
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
