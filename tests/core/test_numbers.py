"""Numbers are those of the loop written by hand: bit for bit, and the average is the average."""

import copy

import pytest
import torch
from fit_core import Callback, Runner
from torch import nn
from torch.nn.utils import clip_grad_norm_


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3)).to(dtype)


def data(*sizes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 6, generator=generator, dtype=dtype), torch.randint(3, (n,), generator=generator))
        for n in sizes
    ]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


class Clip(Callback):
    def on_before_step(self, state):
        clip_grad_norm_(state.model.parameters(), 0.2)


def by_hand(model, batches, epochs, precision, accumulate, clip):
    optimizer, criterion = sgd(model), nn.CrossEntropyLoss()
    scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
    dtype = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    model.train()
    for _ in range(epochs):
        for start in range(0, len(batches), accumulate):
            window = batches[start : start + accumulate]
            samples = sum(len(target) for _, target in window)
            expected = accumulate * len(window[0][1])
            optimizer.zero_grad()
            for index, (input, target) in enumerate(window):
                with torch.autocast("cpu", dtype, enabled=dtype is not None):
                    loss = criterion(model(input), target)
                last = index == len(window) - 1
                if last and samples != expected:
                    for parameter in model.parameters():
                        if parameter.grad is not None:
                            parameter.grad *= expected / samples
                    expected = samples
                if accumulate > 1:
                    loss = loss / (expected / len(target))
                scaler.scale(loss).backward()
            if clip:
                scaler.unscale_(optimizer)
                clip_grad_norm_(model.parameters(), 0.2)
            scaler.step(optimizer)
            scaler.update()
    return model


@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_weights_equal_the_loop_by_hand_bit_for_bit(precision, accumulate, clip):
    batches = data(4, 4, 4, 4, 2, 4, 3)
    torch.manual_seed(7)
    model = network()
    torch.manual_seed(7)
    ours = copy.deepcopy(model)
    torch.manual_seed(7)
    hand = by_hand(model, batches, 3, precision, accumulate, clip)

    torch.manual_seed(7)
    halves = {"fp16": {"use_fp16": True}, "bf16": {"use_bf16": True}}.get(precision, {})
    callbacks = [Clip()] if clip else []
    Runner(ours, sgd(ours), nn.CrossEntropyLoss(), (), callbacks, accumulate_steps=accumulate, **halves).fit(
        batches, epochs=3
    )
    for name, value in hand.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name


def test_equal_windows_are_divided_as_in_the_loop_by_hand():
    model, ours = network(), network()
    batches, criterion, optimizer = data(4, 4, 4, 4, 4, 4), nn.CrossEntropyLoss(), sgd(model)
    torch.manual_seed(3)
    for index, (input, target) in enumerate(batches):
        (criterion(model(input), target) / 3).backward()
        if index % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()
    torch.manual_seed(3)
    Runner(ours, sgd(ours), criterion, accumulate_steps=3).fit(batches)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize("sizes", [(4, 4, 4), (5, 1, 3), (2, 7, 1), (4, 4, 4, 4), (4, 4, 4, 2, 1)])
def test_a_window_equals_one_batch_of_all_its_samples(sizes):
    batches = data(*sizes, dtype=torch.float64)
    windows = [batches[start : start + 3] for start in range(0, len(batches), 3)]
    whole = [tuple(map(torch.cat, zip(*window, strict=True))) for window in windows]
    models = []
    for loader, steps in ((batches, 3), (whole, 1), (iter(batches), 3)):
        model = network(torch.float64)
        model[1].p = 0.0
        runner = Runner(model, sgd(model), nn.CrossEntropyLoss(), accumulate_steps=steps)
        runner.fit(loader)
        assert runner.state.global_step == len(windows)
        models.append(model)
    for name, value in models[1].state_dict().items():
        torch.testing.assert_close(models[0].state_dict()[name], value, rtol=1e-12, atol=1e-12)
        assert torch.equal(models[0].state_dict()[name], models[2].state_dict()[name])  # a loader without len


def test_in_fp16_the_tail_is_stepped_too():
    model = network()
    before = copy.deepcopy(model.state_dict())
    runner = Runner(model, sgd(model), nn.CrossEntropyLoss(), accumulate_steps=4, use_fp16=True)
    runner.fit(data(4, 4, 1))
    assert runner.state.global_step == 1
    assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])


def test_losses_and_functions_weigh_a_short_last_batch_less():
    batches = data(5, 5, 2, dtype=torch.float64)
    model = network(torch.float64)
    model[1].p = 0.0
    criterion = nn.CrossEntropyLoss()

    def accuracy(output, target):
        return (output.argmax(1) == target).double().mean()

    with torch.no_grad():
        outputs = [model(input) for input, _ in batches]
        targets = torch.cat([target for _, target in batches])
        loss = float(criterion(torch.cat(outputs), targets))
        right = float((torch.cat(outputs).argmax(1) == targets).double().mean())
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    history = Runner(model, still, criterion, [accuracy]).fit(batches, val_loader=batches)
    assert history == [
        {
            "epoch": 1,
            "train/loss": pytest.approx(loss, rel=1e-12),
            "train/accuracy": right,
            "lr": 0.0,
            "val/loss": pytest.approx(loss, rel=1e-12),
            "val/accuracy": right,
        }
    ]


def test_the_loss_is_summed_in_double():
    ones = [(torch.zeros(1, 6), torch.full((), 1.1))] * 3
    model = network()
    runner = Runner(model, sgd(model), lambda output, target: target + 0 * output.sum())
    runner.fit(ones * 1000)
    assert runner.state.history[0]["train/loss"] == pytest.approx(float(torch.tensor(1.1)), rel=1e-12)


def test_a_step_that_overflows_in_fp16_is_skipped_and_the_scale_halved():
    model = network()
    before = copy.deepcopy(model.state_dict())

    def explode(output, target):
        return output.sum() * torch.inf

    runner = Runner(model, sgd(model), explode, use_fp16=True)
    runner.fit(data(4))
    assert runner.state.grad_scaler.get_scale() == 65536.0 / 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_autocast_covers_training_evaluation_and_prediction():
    seen = []

    class Watch(Callback):
        def on_batch_end(self, state):
            seen.append(state.output.dtype)

    model = network()
    runner = Runner(model, sgd(model), nn.CrossEntropyLoss(), (), [Watch()], use_bf16=True)
    runner.fit(data(4), val_loader=data(4))
    runner.evaluate(data(4))
    runner.predict(data(4))
    assert seen == [torch.bfloat16] * 4


def test_autocast_inside_forward_ends_with_it():
    class Careful(Runner):
        def forward(self):
            with self.autocast():  # though the Runner has entered it already
                super().forward()
            assert torch.is_autocast_enabled("cpu")

    model = network()
    Careful(model, sgd(model), nn.CrossEntropyLoss(), use_bf16=True).fit(data(4, 4))
    assert not torch.is_autocast_enabled("cpu")


def test_gradients_in_on_before_step_are_unscaled_and_whole():
    norms = []

    class Norm(Callback):
        def on_before_step(self, state):
            norms.append(torch.cat([p.grad.flatten() for p in state.model.parameters()]).norm())

    for options in ({}, {"use_fp16": True}):
        model = network()
        model[1].p = 0.0
        Runner(model, sgd(model), nn.CrossEntropyLoss(), (), [Norm()], accumulate_steps=2, **options).fit(data(4, 4))
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-2, atol=0)


def test_gradients_left_by_others_do_not_count():
    model, ours = network(), network()
    for parameter in ours.parameters():
        parameter.grad = torch.ones_like(parameter)
    for trained in (model, ours):
        torch.manual_seed(0)
        Runner(trained, sgd(trained), nn.CrossEntropyLoss()).fit(data(4))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), ours.parameters(), strict=True))


def test_counters_count():
    model = network()
    runner = Runner(model, sgd(model), nn.CrossEntropyLoss(), accumulate_steps=2)
    runner.fit(data(4, 4, 1), epochs=3, val_loader=data(5))
    state = runner.state
    assert (state.epoch, state.num_epochs, state.global_step, state.samples_seen) == (3, 3, 6, 27)
    runner.fit(data(4))
    assert (state.epoch, state.global_step, state.samples_seen, len(state.history)) == (1, 1, 4, 1)
