"""Several optimizers as one, beside loops written out here."""

import pytest
import torch
from fit_callbacks import (
    GradientClipping,
    LRFinder,
    LRScheduler,
    Optimizers,
    Phase,
    PhasesScheduler,
    ReduceLROnPlateau,
    ResetOptimizer,
)
from fit_core import Callback, Runner
from scene import Snapshots, Watch, batches, flat, load, network, same
from torch import nn
from torch.optim import lr_scheduler


def parts_of(model):
    return [*model[0].parameters(), *model[1].parameters()], [*model[4].parameters()]


def adam_and_sgd(model):
    body, head = parts_of(model)
    return torch.optim.AdamW(body, lr=0.01), torch.optim.SGD(head, lr=0.1, momentum=0.9)


def muon_and_adam(model):
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    return torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01)


def make(*callbacks, kinds=adam_and_sgd, **options):
    model = network()
    return Runner(model, Optimizers(*kinds(model)), nn.CrossEntropyLoss(), (), callbacks, **options)


def by_hand(kinds=adam_and_sgd, epochs=2, *, fp16=False, max_norm=None, schedules=()):
    """The loop with several optimizers and one scaler."""
    model = network()
    optimizers = kinds(model)
    scaler = torch.amp.GradScaler("cpu", enabled=fp16)
    schedulers = [make_one(optimizer) for make_one in schedules for optimizer in optimizers]
    for _ in range(epochs):
        for input, target in batches():
            with torch.autocast("cpu", torch.float16, enabled=fp16):
                loss = nn.functional.cross_entropy(model(input), target)
            scaler.scale(loss).backward()
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            overflows = any(parameter.grad.isfinite().logical_not().any() for parameter in model.parameters())
            if max_norm:
                nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            if not overflows:  # torch skips one of them, and steps the other
                for optimizer in optimizers:
                    scaler.step(optimizer)
            scaler.update()
            for optimizer in optimizers:
                optimizer.zero_grad()
            for scheduler in schedulers:
                scheduler.step()
    return model, scaler


has_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9")


@pytest.mark.parametrize("kinds", [adam_and_sgd, pytest.param(muon_and_adam, marks=has_muon)])
def test_two_optimizers_equal_the_loop_by_hand(kinds):
    runner = make(kinds=kinds)
    runner.fit(batches(), epochs=2)
    assert same(runner.state.model, by_hand(kinds)[0])


@pytest.mark.parametrize("max_norm", [None, 0.3])
def test_in_fp16_they_share_one_scaler(max_norm):
    runner = make(*([GradientClipping(max_norm)] if max_norm else []), use_fp16=True)
    runner.fit(batches(), epochs=2)
    model, scaler = by_hand(fp16=True, max_norm=max_norm)
    assert same(runner.state.model, model)
    assert runner.state.grad_scaler.state_dict() == scaler.state_dict()


def test_an_overflow_skips_the_step_of_all():
    class Overflow(Callback):
        def on_after_backward(self, state):
            if state.batch_idx == 1:
                state.model[4].weight.grad.fill_(torch.inf)

    weights = Watch(
        "on_batch_end", lambda state: [parameter.detach().clone() for parameter in state.model.parameters()]
    )
    runner = make(Overflow(), weights, use_fp16=True)
    runner.fit(batches())
    assert all(map(torch.equal, weights.seen[1], weights.seen[0]))
    assert not any(map(torch.equal, weights.seen[2], weights.seen[1]))


def test_accumulation_and_clipping_equal_the_loop_by_hand():
    runner = make(GradientClipping(0.3), accumulate_steps=2)
    runner.fit(batches((8, 8, 8, 8)), epochs=2)
    model = network()
    optimizers = adam_and_sgd(model)
    for _ in range(2):
        for number, (input, target) in enumerate(batches((8, 8, 8, 8))):
            (nn.functional.cross_entropy(model(input), target) / 2).backward()
            if number % 2:
                nn.utils.clip_grad_norm_(model.parameters(), 0.3)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
    assert same(runner.state.model, model)


def test_torchs_schedulers_step_all_or_one():
    runner = make()
    runner.state.callbacks.append(LRScheduler(lr_scheduler.ExponentialLR(runner.state.optimizer, 0.9)))
    runner.fit(batches(), epochs=2)
    decay = lambda optimizer: lr_scheduler.ExponentialLR(optimizer, 0.9)  # noqa: E731
    assert same(runner.state.model, by_hand(schedules=[decay])[0])
    runner = make()
    runner.state.callbacks.append(LRScheduler(lr_scheduler.StepLR(runner.state.optimizer.optimizers[1], 1, 0.5)))
    runner.fit(batches())
    assert [group["lr"] for group in runner.state.optimizer.param_groups] == [0.01, 0.1 / 2**5]


def test_what_one_cycle_needs_of_all_it_asks():
    with pytest.raises(ValueError, match="must support momentum"):
        make(LRScheduler(lambda o, n: lr_scheduler.OneCycleLR(o, 0.1, total_steps=n))).fit(batches())
    make(LRScheduler(lambda o, n: lr_scheduler.OneCycleLR(o, 0.1, total_steps=n, cycle_momentum=False))).fit(batches())


CALLBACKS = {
    "none": list,
    "phases": lambda: [PhasesScheduler([Phase(0, 1, (0, 0.3)), Phase(1, 3, (0.3, 0), "cos")])],
    "one cycle": lambda: [
        LRScheduler(lambda o, n: lr_scheduler.OneCycleLR(o, [0.1, 0.3], total_steps=n, cycle_momentum=False))
    ],
    "plateau": lambda: [ReduceLROnPlateau("train/loss", patience=0, threshold=10.0, factor=0.5)],
    "reset": lambda: [ResetOptimizer([1, 2]), GradientClipping(0.5)],
}


@pytest.mark.parametrize("options", [{}, {"use_fp16": True, "accumulate_steps": 2}])
@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("kinds", [adam_and_sgd, pytest.param(muon_and_adam, marks=has_muon)])
def test_a_resumed_run_ends_with_the_same_bits(name, kinds, options):
    def run(callbacks, saved=None):
        runner = make(*callbacks, *CALLBACKS[name](), kinds=kinds, **options)
        if saved:
            runner.state.load_state_dict(load(saved))
        runner.fit(batches(), epochs=3)
        return flat(runner.state.state_dict())

    snapshots = Snapshots()
    gold = run([snapshots])
    for saved in snapshots.saved[1::3]:
        assert run([], saved) == gold


def test_callbacks_reach_both():
    rates = Watch("on_before_step", lambda state: [group["lr"] for group in state.optimizer.param_groups])
    make(rates, PhasesScheduler([Phase(0, 1, (0.0, 0.4))])).fit(batches())
    assert [pair[1] for pair in rates.seen] == pytest.approx([0.4 * i / 4 for i in range(5)])
    assert [pair[0] for pair in rates.seen] == pytest.approx([0.04 * i / 4 for i in range(5)])

    remembered = Watch("on_epoch_begin", lambda state: [len(part.state) for part in state.optimizer.optimizers])
    make(remembered, ResetOptimizer(2)).fit(batches(), epochs=4)
    assert remembered.seen == [[0, 0], [4, 2], [0, 0], [4, 2]]

    finder, runner = LRFinder(steps=15), make()
    before = flat([runner.state.model.state_dict(), runner.state.optimizer.state_dict()])
    runner.state.callbacks.append(finder)
    runner.fit(batches(), epochs=4)
    assert len(finder.lrs) > 5
    assert flat([runner.state.model.state_dict(), runner.state.optimizer.state_dict()]) == before


def test_the_state_is_one_dict():
    runner = make()
    runner.fit(batches())
    optimizer, model = runner.state.optimizer, runner.state.model
    sgd = optimizer.optimizers[1]
    assert optimizer.state[model[4].bias] is sgd.state[model[4].bias]
    assert set(optimizer.state) == set(model.parameters())
    assert len(optimizer.state) == 6
    del optimizer.state[model[4].bias]
    assert model[4].bias not in sgd.state
    optimizer.state[model[4].bias]["momentum_buffer"] = 1
    assert sgd.state[model[4].bias] == {"momentum_buffer": 1}
    with pytest.raises(KeyError):
        optimizer.state[torch.zeros(1)]
    assert repr(optimizer).startswith("Optimizers(AdamW (")


def test_wrong_optimizers_are_refused():
    model = network()
    adam, sgd = adam_and_sgd(model)
    with pytest.raises(TypeError, match=r"got list\. Write Optimizers\(first, second\)"):
        Optimizers([adam, sgd])
    with pytest.raises(ValueError, match="got none"):
        Optimizers()
    with pytest.raises(ValueError, match="got 4 parameters in optimizer 1, SGD, that another one has too"):
        Optimizers(adam, torch.optim.SGD(model.parameters()))
    with pytest.raises(ValueError, match=r"Call optimizers\[0\].add_param_group"):
        Optimizers(adam, sgd).add_param_group({"params": [torch.zeros(1)]})
    with pytest.raises(AttributeError, match=r"Set optimizers\[0\]\.param_groups"):
        Optimizers(adam, sgd).param_groups = [{}]
    with pytest.raises(AttributeError, match=r"Set optimizers\[0\]\.state"):
        Optimizers(adam, sgd).state = {1: 2}
    swapped = Optimizers(torch.optim.SGD(parts_of(model)[0]), torch.optim.AdamW(parts_of(model)[1]))
    with pytest.raises(ValueError, match=r"Optimizers\(AdamW, SGD\) as in the state, got Optimizers\(SGD, AdamW\)"):
        swapped.load_state_dict(Optimizers(adam, sgd).state_dict())
    lbfgs = torch.optim.LBFGS(parts_of(model)[1])
    with pytest.raises(ValueError, match="LBFGS, which computes the loss several times"):
        Runner(model, Optimizers(adam, lbfgs), nn.CrossEntropyLoss()).fit(batches())
    assert float(Optimizers(adam, sgd).step(lambda: torch.ones(()))) == 1
