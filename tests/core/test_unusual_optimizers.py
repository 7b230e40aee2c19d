"""Optimizers that are not like the others: L-BFGS, and those without a schedule."""

import pytest
import torch
from fit_core import Callback, Runner
from optimizers import batches, make, network, sgd
from scene import Snapshots, load, same
from torch import nn
from torch.optim import lr_scheduler


def test_lbfgs_is_refused_before_the_first_step_and_works_in_a_step_of_ones_own():
    lbfgs = lambda model: torch.optim.LBFGS(model.parameters(), max_iter=4)  # noqa: E731
    steps = Snapshots()
    with pytest.raises(
        ValueError, match=r"got LBFGS, which computes the loss several times .* Override Runner._make_step"
    ):
        make(steps, optimizer=lbfgs).fit(batches())
    assert steps.saved == []
    scheduled = make(optimizer=lbfgs)
    lr_scheduler.StepLR(scheduled.state.optimizer, 1)
    with pytest.raises(ValueError, match="LBFGS, which computes"):
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
    save = Snapshots()
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
            r"got an object of StepLR. Wrap it: fit_callbacks.LRScheduler\(scheduler, interval='epoch'\), or 'step'",
        ),
        (lr_scheduler.ReduceLROnPlateau(optimizer), r"Write fit_callbacks.ReduceLROnPlateau\(monitor\)"),
    ):
        with pytest.raises(TypeError, match=message):
            Runner(model, optimizer, nn.CrossEntropyLoss(), callbacks=[scheduler])
