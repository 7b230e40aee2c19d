"""Optimizers of all kinds, and those that are not the saved one: they work, or are refused before anything changes."""

import io
import warnings

import pytest
import torch
from fit_core import Callback, Runner
from torch import nn
from torch.optim import lr_scheduler


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))


def batches(sizes=(6, 6, 6, 4)):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)


def make(*callbacks, optimizer=sgd, model=None, runner=Runner, **options):
    model = model or network()
    return runner(model, optimizer(model), nn.CrossEntropyLoss(), (), callbacks, **options)


class Save(Callback):
    def __init__(self):
        self.saved = []

    def on_checkpoint(self, state):
        buffer = io.BytesIO()
        torch.save(state.state_dict(), buffer)
        self.saved.append(buffer.getvalue())


class Load(Callback):
    def __init__(self, saved):
        self.saved = saved

    def on_begin(self, state):
        state.load_state_dict(load(self.saved))


def load(saved):
    return torch.load(io.BytesIO(saved), weights_only=True)


def saved_by(*callbacks, epochs=2, **options):
    save = Save()
    make(save, *callbacks, **options).fit(batches(), epochs=epochs)
    return save.saved


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


# Resume with another optimizer


def test_another_class_is_refused_with_both_names():
    runner = make(optimizer=lambda model: torch.optim.AdamW(model.parameters()))
    with pytest.raises(
        ValueError, match=r"was saved with SGD, and the Runner has AdamW. Make a SGD, or start a new run"
    ):
        runner.state.load_state_dict(load(saved_by()[2]))
    assert same(runner.state.model, network())


@pytest.mark.filterwarnings("ignore:the optimizer does not have")
def test_parameters_in_another_order_are_refused_by_name():
    runner = make(optimizer=lambda model: torch.optim.SGD([*model[2].parameters(), *model[0].parameters()], lr=0.1))
    saved = saved_by(
        optimizer=lambda model: torch.optim.SGD([*model[0].parameters(), *model[2].parameters()], lr=0.1, momentum=0.9),
        model=nn.Sequential(*network()[:4], nn.Linear(4, 3).requires_grad_(False)),
    )
    with pytest.raises(
        ValueError, match=r"In group 0, 4 of 4 differ: 0.weight -> 2.weight, 0.bias -> 2.bias, 2.weight ->"
    ):
        runner.state.load_state_dict(load(saved[2]))


def test_fewer_parameters_are_refused_by_name():
    with pytest.warns(UserWarning, match="the optimizer does not have"):
        runner = make(optimizer=lambda model: torch.optim.SGD(model[0].parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"In group 0, 4 of 6 differ: 2.weight -> nothing, .* same parameters"):
        runner.state.load_state_dict(load(saved_by()[2]))


class AddGroup(Callback):
    """Train the head from the second epoch on."""

    def on_epoch_begin(self, state):
        if state.epoch == 1:
            state.optimizer.add_param_group({"params": state.model[4].parameters(), "lr": 0.01})


def body(model):
    return torch.optim.SGD(model[:4].parameters(), lr=0.1, momentum=0.9)


@pytest.mark.filterwarnings("ignore:the optimizer does not have")
def test_a_group_that_the_run_has_added_is_restored():
    save = Save()
    gold = make(save, AddGroup(), optimizer=body)
    gold.fit(batches(), epochs=3)
    for saved in save.saved[4::5]:  # after each epoch
        for callback in (AddGroup(), Load(saved)):
            runner = make(AddGroup(), callback, optimizer=body)
            if isinstance(callback, AddGroup):
                runner.state.callbacks.pop()
                runner.state.load_state_dict(load(saved))
            runner.fit(batches(), epochs=3)
            assert same(runner.state.model, gold.state.model)
            assert [group["lr"] for group in runner.state.optimizer.param_groups] == [0.1, 0.01]


def test_groups_that_do_not_fit_say_what_to_do():
    def split(model):
        return torch.optim.SGD([{"params": part.parameters()} for part in (model[0], model[2], model[4])], 0.1)

    with pytest.raises(ValueError, match=r"In group 0, 4 of 6 differ: 2.weight -> nothing"):
        make(optimizer=split).state.load_state_dict(load(saved_by()[2]))
    with pytest.raises(ValueError, match=r"In group 0, 4 of 2 differ: nothing -> 2.weight"):
        make().state.load_state_dict(load(saved_by(optimizer=split)[2]))

    class Extra(Callback):
        def on_begin(self, state):
            state.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})

    saved = saved_by(Extra())
    with pytest.raises(ValueError, match=r"has 1 parameter groups, and 2 were saved. Call add_param_group .*: \?"):
        make().state.load_state_dict(load(saved[2]))
    runner = make()
    runner.state.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    runner.state.load_state_dict(load(saved[2]))
    with pytest.raises(ValueError, match=r"has 2 parameter groups, and 1 were saved: make it without"):
        runner.state.load_state_dict(load(saved_by()[2]))


# Settings that the program and the state disagree about


@pytest.mark.parametrize("loads", ["before fit", "in on_begin"])
def test_another_learning_rate_is_named_in_one_warning(loads):
    class Decay(Callback):
        def on_epoch_begin(self, state):
            state.optimizer.param_groups[0]["lr"] = 0.1 / (1 + state.epoch)

    def resume(saved, **settings):
        adam = lambda model: torch.optim.AdamW(model.parameters(), **{"lr": 0.1, **settings})  # noqa: E731
        runner = make(*([Decay(), Load(saved)] if saved and loads == "in on_begin" else [Decay()]), optimizer=adam)
        if saved and loads == "before fit":
            runner.state.load_state_dict(load(saved))
        save = Save()
        runner.state.callbacks.append(save)
        runner.fit(batches(), epochs=3)
        return save.saved

    saved = resume(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resume(saved[11])
    match = (
        r"lr 0.1 \(now 0.03\), weight_decay 0.01 \(now 0.1\), betas \[0.9, 0.999\] \(now \[0.8, 0.999\]\). To change"
    )
    with pytest.warns(UserWarning, match=match) as caught:
        again = resume(saved[11], lr=0.03, weight_decay=0.1, betas=(0.8, 0.999))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resume(again[0])


def test_what_was_unfrozen_trains_on_after_a_resume():
    class Unfreeze(Callback):
        def on_begin(self, state):
            state.model[0].requires_grad_(False)

        def on_epoch_end(self, state):
            if state.epoch == 0:
                state.model[0].requires_grad_(True)

    save = Save()
    gold = make(save, Unfreeze())
    gold.fit(batches(), epochs=3)
    for saved in save.saved:
        runner = make(Unfreeze())
        runner.state.load_state_dict(load(saved))
        runner.fit(batches(), epochs=3)
        assert same(runner.state.model, gold.state.model)
    model = network()
    model[4].requires_grad_(False)
    with pytest.warns(UserWarning, match=r"frozen nothing \(now 4.weight, 4.bias\)"):
        make(model=model).state.load_state_dict(load(save.saved[0]))


# Optimizers that are not like the others


def test_lbfgs_is_refused_before_the_first_step_and_works_in_a_step_of_ones_own():
    lbfgs = lambda model: torch.optim.LBFGS(model.parameters(), max_iter=4)  # noqa: E731
    steps = Save()
    with pytest.raises(ValueError, match=r"LBFGS computes the loss several times .* Override Runner._make_step"):
        make(steps, optimizer=lbfgs).fit(batches())
    assert steps.saved == []
    scheduled = make(optimizer=lbfgs)
    lr_scheduler.StepLR(scheduled.state.optimizer, 1)
    with pytest.raises(ValueError, match="LBFGS computes"):
        scheduled.fit(batches())

    class Closure(Runner):
        def _make_step(self):
            state = self.state

            def closure():
                state.optimizer.zero_grad()
                state.output = state.model(state.input)
                loss = state.criterion(state.output, state.target)
                loss.backward()
                return loss

            if state.is_train:
                state.loss = state.optimizer.step(closure)
            else:
                state.loss = state.criterion(state.model(state.input), state.target)

    runner = make(optimizer=lbfgs, runner=Closure)
    history = runner.fit(batches((32,)), epochs=4, val_loader=batches((32,)))
    assert history[-1]["val/loss"] < history[0]["train/loss"] / 2


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free SGD (Defazio et al. 2024): weights to train, y, and to evaluate, x, a mean of those at z."""

    def __init__(self, params, lr=0.1, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "steps": 0, "train_mode": False})

    def _move(self, is_train, weight):
        for group in self.param_groups:
            if group["train_mode"] is not is_train:
                group["train_mode"] = is_train
                for parameter in group["params"]:
                    if "z" in self.state[parameter]:
                        parameter.data.lerp_(self.state[parameter]["z"], weight(group["beta"]))

    def eval(self):
        self._move(False, lambda beta: 1 - 1 / beta)

    def train(self):
        self._move(True, lambda beta: 1 - beta)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["train_mode"], "step in eval mode"
            group["steps"] += 1
            for parameter in group["params"]:
                z = self.state[parameter].setdefault("z", parameter.clone())
                parameter.lerp_(z, 1 / group["steps"])
                parameter.add_(parameter.grad, alpha=group["lr"] * (group["beta"] * (1 - 1 / group["steps"]) - 1))
                z.sub_(parameter.grad, alpha=group["lr"])


def schedule_free(model):
    return ScheduleFree(model.parameters())


def schedule_free_by_hand(epochs, validates):
    model, losses = network(), []
    optimizer, criterion = schedule_free(model), nn.CrossEntropyLoss()
    for _ in range(epochs):
        optimizer.train()
        for input, target in batches():
            optimizer.zero_grad()
            criterion(model(input), target).backward()
            optimizer.step()
        optimizer.eval()
        if validates:
            with torch.no_grad():
                losses += [float(criterion(model(input), target)) for input, target in batches((9,))]
    return model, losses


@pytest.mark.parametrize("validates", [True, False])
def test_schedule_free_optimizers_change_modes_with_the_model(validates):
    save = Save()
    gold, model = make(save, optimizer=schedule_free), network()
    history = gold.fit(batches(), epochs=3, val_loader=batches((9,)) if validates else None)
    model, losses = schedule_free_by_hand(3, validates)
    assert same(gold.state.model, model)
    assert [row["val/loss"] for row in history if "val/loss" in row] == pytest.approx(losses)
    for number, saved in enumerate(save.saved):
        is_after_epoch = number % 5 == 4
        assert load(saved)["optimizer"]["param_groups"][0]["train_mode"] is not is_after_epoch
        runner = make(optimizer=schedule_free)
        runner.state.load_state_dict(load(saved))
        runner.fit(batches(), epochs=3, val_loader=batches((9,)) if validates else None)
        assert same(runner.state.model, model)


def test_schedule_free_weights_are_evaluated_in_the_middle_of_an_epoch_and_train_on():
    class Evaluate(Callback):
        def __init__(self):
            self.losses, self.modes = [], []

        def on_batch_end(self, state):
            if state.is_train:
                self.losses.append(runner.evaluate(batches((9,)))["val/loss"])
                self.modes.append(state.optimizer.param_groups[0]["train_mode"])

    evaluate = Evaluate()
    runner = make(evaluate, optimizer=schedule_free)
    runner.fit(batches())
    assert evaluate.modes == [True] * 4
    assert evaluate.losses[-1] == pytest.approx(runner.evaluate(batches((9,)))["val/loss"])
    torch.testing.assert_close(runner.state.model.state_dict(), schedule_free_by_hand(1, False)[0].state_dict())


def test_a_scheduler_among_the_callbacks_is_to_be_wrapped():
    model = network()
    optimizer = sgd(model)
    for scheduler, message in (
        (
            lr_scheduler.StepLR(optimizer, 1),
            r"callbacks contains a StepLR: wrap it, fit_callbacks.LRScheduler\(scheduler\)",
        ),
        (lr_scheduler.ReduceLROnPlateau(optimizer), r"write fit_callbacks.ReduceLROnPlateau\(monitor\)"),
    ):
        with pytest.raises(TypeError, match=message):
            Runner(model, optimizer, nn.CrossEntropyLoss(), callbacks=[scheduler])
