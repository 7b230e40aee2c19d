"""A resume with another optimizer, or with other settings of it, works or is refused before anything changes."""

import warnings

import pytest
import torch
from fit_core import Callback
from optimizers import Load, batches, make, network
from scene import Snapshots, load, same
from torch import nn


def saved_by(*callbacks, epochs=2, **options):
    save = Snapshots()
    make(save, *callbacks, **options).fit(batches(), epochs=epochs)
    return save.saved


# Resume with another optimizer


def test_another_class_is_refused_with_both_names():
    runner = make(optimizer=lambda model: torch.optim.AdamW(model.parameters()))
    with pytest.raises(ValueError, match=r"of the state, SGD, got AdamW. Use SGD, or start a new run"):
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
        ValueError, match=r"in group 0, 4 of 4 differ \(0.weight -> 2.weight, 0.bias -> 2.bias, 2.weight ->"
    ):
        runner.state.load_state_dict(load(saved[2]))


def test_fewer_parameters_are_refused_by_name():
    runner = make(optimizer=lambda model: torch.optim.SGD(model[0].parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"in group 0, 4 of 6 differ \(2.weight -> nothing, .* same parameters"):
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
    save = Snapshots()
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

    with pytest.raises(ValueError, match=r"in group 0, 4 of 6 differ \(2.weight -> nothing"):
        make(optimizer=split).state.load_state_dict(load(saved_by()[2]))
    with pytest.raises(ValueError, match=r"in group 0, 4 of 2 differ \(nothing -> 2.weight"):
        make().state.load_state_dict(load(saved_by(optimizer=split)[2]))

    class Extra(Callback):
        def on_begin(self, state):
            state.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})

    saved = saved_by(Extra())
    with pytest.raises(
        ValueError, match=r"expected 2 parameter groups as in the state, got 1. Call add_param_group .*: \?"
    ):
        make().state.load_state_dict(load(saved[2]))
    runner = make()
    runner.state.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    runner.state.load_state_dict(load(saved[2]))
    with pytest.raises(
        ValueError, match=r"expected 1 parameter groups as in the state, got 2. Create the optimizer without"
    ):
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
        save = Snapshots()
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

    save = Snapshots()
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
