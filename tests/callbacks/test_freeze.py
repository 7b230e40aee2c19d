"""Parts of a model that are frozen, beside a loop written out here."""

import math

import pytest
import torch
from fit_callbacks import Freeze
from fit_core import Callback, Runner
from scene import Snapshots, Watch, batches, load, network, same
from torch import nn


def freezing(*callbacks, model=None):
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Runner(model, optimizer, nn.CrossEntropyLoss(), (), callbacks)


def frozen_by_hand(until, epochs):
    """The first linear layer and its batch norm stay until an epoch."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(epochs):
        model.train()
        for part in model[:2]:
            part.requires_grad_(epoch >= until).train(epoch >= until)
        for input, target in batches():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(input), target).backward()
            optimizer.step()
    return model


def test_a_second_run_that_fails_to_begin_leaves_frozen_what_the_user_has_frozen_since():
    class Fail(Callback):
        def on_begin(self, state):
            if not state.model[0].weight.requires_grad:
                raise RuntimeError("cannot begin")

    runner = freezing(Fail(), Freeze("0."))
    runner.fit(batches())
    runner.state.model[0].requires_grad_(False)
    with pytest.raises(RuntimeError, match="cannot begin"):
        runner.fit(batches())
    assert not runner.state.model[0].weight.requires_grad


@pytest.mark.parametrize("until", [1, 2, None])
def test_a_frozen_part_stays_with_its_batch_norm_and_then_trains(until):
    def run(*callbacks, saved=None):
        runner = freezing(Freeze(["0.", "1"], until), *callbacks)
        if saved:
            runner.state.load_state_dict(load(saved))
        runner.fit(batches(), epochs=3, val_loader=batches(seed=1))
        return runner

    snapshots = Snapshots()
    gold = run(snapshots).state.model
    assert same(gold, frozen_by_hand(until or math.inf, 3))
    assert torch.equal(gold[1].running_mean, torch.zeros(12)) is (until is None)
    assert all(part.training for part in gold.modules())
    for saved in snapshots.saved:
        assert same(run(saved=saved).state.model, gold)


def test_parts_are_unfrozen_one_after_the_other():
    flags = Watch("on_batch_end", lambda state: [p.requires_grad for p in state.model.parameters()])
    freezing(Freeze("1.", until=1), Freeze("0.", until=2), flags).fit(batches((8,)), epochs=3)
    assert flags.seen == [[False] * 4 + [True] * 2, [False] * 2 + [True] * 4, [True] * 6]


def test_what_trained_before_the_run_trains_after_it():
    model = network()
    model[4].bias.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    runner = freezing(Freeze(["0.", "4."]), Freeze("0.weight"), model=model)
    for _ in range(2):
        runner.fit(batches())
        assert [parameter.requires_grad for parameter in model.parameters()] == before
    everything = freezing(Freeze(""), model=model)
    with pytest.raises(ValueError, match="expected a loss with a graph"):
        everything.fit(batches())
    assert [parameter.requires_grad for parameter in model.parameters()] == before


def test_a_lazy_part_can_be_frozen():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3))
    runner = freezing(Freeze("0.", until=1), model=model)
    runner.fit(batches((8,)))
    before = model[0].weight.detach().clone()
    runner.fit(batches((8,)))
    assert torch.equal(model[0].weight, before)
    runner.fit(batches((8,)), epochs=2)
    assert not torch.equal(model[0].weight, before)


def test_freeze_refuses_what_it_cannot_do():
    with pytest.raises(
        ValueError, match=r"names that match parameters, got fc\. Pass the start of one of 0.weight, 0.bias"
    ):
        freezing(Freeze("fc")).fit(batches())
    with pytest.raises(ValueError, match="expected until to be 1 or more, got 0"):
        Freeze("0.", until=0)
    with pytest.raises(TypeError, match="expected until to be a whole number, got 'end'"):
        Freeze("0.", until="end")
    model = network()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([*model[1].parameters(), *model[4].parameters()], lr=0.1)
    runner = Runner(model, optimizer, nn.CrossEntropyLoss(), (), [Freeze("0.", until=1)])
    with pytest.raises(
        ValueError,
        match=r"an optimizer of all parameters, got one without 0.weight, 0.bias, which would not train after",
    ):
        runner.fit(batches(), epochs=2)
    runner.fit(batches(), epochs=1)


@pytest.fixture
def group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_ddp_must_have_seen_what_is_unfrozen():
    ddp = nn.parallel.DistributedDataParallel
    model = network()
    model[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"average the gradients of all 6 trainable parameters, got 4, since .* Wrap"):
        freezing(Freeze("0.", until=1), model=ddp(model)).fit(batches(), epochs=2)
    with pytest.raises(
        ValueError, match=r"to wait for the gradients of the 4 trainable parameters, got 6, since .* Create it"
    ):
        freezing(Freeze("0."), model=ddp(network())).fit(batches())
    wrapped = ddp(network(), find_unused_parameters=True)
    freezing(Freeze(["0.", "1."], until=1), model=wrapped).fit(batches(), epochs=2)
    assert same(wrapped.module, frozen_by_hand(1, 2))
