"""ModelEma: its average equals the formula, is what is evaluated while it is current, and costs no wait."""

import warnings

import pytest
import torch
from fit_callbacks import ModelEma
from fit_core import Callback, Runner
from scene import Watch, batches, make, network
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_equals_the_formula_and_buffers_are_copied(warmup):
    ema, weights = ModelEma(0.6, warmup=warmup), []
    watch = Watch("on_batch_end", lambda state: weights.append([p.detach().clone() for p in state.model.parameters()]))
    runner = make(watch, ema)
    average = [parameter.detach().clone() for parameter in runner.state.model.parameters()]
    runner.fit(batches(), epochs=2)
    for step, now in enumerate(weights, 1):
        decay = min(0.6, (1 + step) / (10 + step)) if warmup else 0.6
        average = [decay * old + (1 - decay) * new for old, new in zip(average, now, strict=True)]
    for ours, expected in zip(ema.model.parameters(), average, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
    for ours, trained in zip(ema.model.buffers(), runner.state.model.buffers(), strict=True):
        assert torch.equal(ours, trained)


@pytest.mark.parametrize("first", [True, False])
def test_the_average_is_what_validation_sees_wherever_it_stands(first):
    ema, seen = ModelEma(0.5), []
    watch = Watch("on_batch_begin", lambda state: seen.append((state.is_train, state.model, state.model.training)))
    runner = make(*((ema, watch) if first else (watch, ema)))
    history = runner.fit(batches(), epochs=2, val_loader=batches(seed=1))
    trained = runner.state.model
    assert {(is_train, model) for is_train, model, _ in seen} == {(True, trained), (False, ema.model)}
    assert all(training == is_train for is_train, _, training in seen)
    model = ema.model.eval()
    with torch.no_grad():
        total = sum(float(nn.functional.cross_entropy(model(x), y)) * len(x) for x, y in batches(seed=1))
    assert history[-1]["val/loss"] == pytest.approx(total / 37, rel=1e-6)
    assert runner.evaluate(batches(seed=1))["val/loss"] == history[-1]["val/loss"]
    assert runner.state.model is trained


def test_the_model_is_back_when_validation_raises():
    class Fail(Callback):
        def on_batch_end(self, state):
            if not state.is_train:
                raise RuntimeError("broken off")

    runner = make(ModelEma(0.5), Fail())
    trained = runner.state.model
    with pytest.raises(RuntimeError, match="broken off"):
        runner.fit(batches(), val_loader=batches())
    assert runner.state.model is trained


def test_a_checkpoint_holds_both_models():
    ema = ModelEma(0.9)
    runner = make(ema)
    runner.fit(batches())
    saved = runner.state.state_dict()
    assert torch.equal(saved["model"]["0.weight"], runner.state.model[0].weight)
    assert torch.equal(saved["callbacks"]["ModelEma"]["model"]["0.weight"], ema.model[0].weight)
    assert not torch.equal(ema.model[0].weight, runner.state.model[0].weight)


@pytest.mark.parametrize("assign", [False, True])
def test_weights_that_were_loaded_after_the_run_are_evaluated_and_not_the_average(assign):
    runner = make(ModelEma(0.5))
    model, other = runner.state.model, network(seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):  # the average of the last run, whatever ran before
            runner.fit(batches())
            runner.evaluate(batches(seed=1))
    model.load_state_dict(other.state_dict(), assign=assign)
    expected = Runner(other, torch.optim.SGD(other.parameters()), runner.state.criterion).evaluate(batches(seed=1))
    with pytest.warns(UserWarning, match="changed after the run .* so the model itself is evaluated"):
        assert runner.evaluate(batches(seed=1)) == expected
    with pytest.warns(UserWarning, match="the model itself is evaluated"):
        assert torch.equal(runner.predict([x for x, _ in batches(seed=1)])[:1], model.eval()(batches(seed=1)[0][0])[:1])


def test_a_second_run_that_fails_to_begin_does_not_bring_an_old_average_back():
    class Fail(Callback):
        def on_begin(self, state):
            if hasattr(self, "has_run"):
                raise RuntimeError("cannot begin")
            self.has_run = True

    runner = make(Fail(), ModelEma(0.5))
    runner.fit(batches())
    nn.init.zeros_(runner.state.model[4].weight), nn.init.zeros_(runner.state.model[4].bias)
    with pytest.raises(RuntimeError, match="cannot begin"):
        runner.fit(batches())
    with pytest.warns(UserWarning, match="were changed after the run"):
        assert not runner.predict(batches()).any()


def test_an_average_is_not_evaluated_in_place_of_the_model_of_another_runner():
    ema = ModelEma(0.5)
    make(ema).fit(batches())
    other = make(ema, model=network(seed=1))
    with pytest.warns(UserWarning, match="the model itself is evaluated"):
        value = other.evaluate(batches(seed=1))["val/loss"]
    other.state.callbacks.clear()
    assert other.evaluate(batches(seed=1))["val/loss"] == value


def test_ema_reads_nothing_back_from_the_device():
    ema = ModelEma(0.5)
    runner = make(ema)
    seen = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    runner.fit(batches()[:1])
    with Count():
        ema._update(0.5)
    assert seen
    assert not [name for name in seen if "_local_scalar_dense" in name or "item" in name or "is_nonzero" in name]


def test_ema_follows_buffers_that_grow_and_asks_for_the_weights_of_a_lazy_model():
    class Grows(nn.Linear):
        def __init__(self):
            super().__init__(6, 3)
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, input):
            self.seen = torch.cat([self.seen, input.mean()[None]]) if self.training else self.seen
            return super().forward(input)

    ema, model = ModelEma(0.5), Grows()
    make(ema, model=model).fit(batches())
    assert torch.equal(ema.model.seen, model.seen)
    lazy = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"a lazy one: 0.weight, 0.bias do not .* Run it once before fit: model\(i"):
        make(ModelEma(), model=lazy).fit(batches())
    lazy(batches()[0][0])
    make(ModelEma(), model=lazy).fit(batches())


def test_ema_refuses_a_decay_of_one():
    with pytest.raises(ValueError, match="expected decay to be 0 or more and below 1, got 1"):
        ModelEma(1)
