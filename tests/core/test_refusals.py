"""Mistakes in what the Runner gets are refused before the first step, in a sentence that says what to do."""

import re
import warnings
from concurrent import futures

import pytest
import torch
from fit_core import Callback, Runner
from torch import nn

LOSS = nn.MSELoss()
BATCHES = [(torch.zeros(2, 1), torch.zeros(2, 1))]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_an_optimizer_over_none_of_the_parameters_is_refused():
    with pytest.raises(ValueError, match="an optimizer of the model's 2 trainable parameters, got one"):
        Runner(nn.Linear(1, 1), sgd(nn.Linear(1, 1)), LOSS)


def test_an_optimizer_over_some_of_the_parameters_warns_with_names():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    runner = Runner(model, sgd(model[0]), LOSS)
    with pytest.warns(
        UserWarning, match=r"does not have 2 of 4 trainable parameters, .* train: 1.weight, 1.bias\. Add"
    ) as seen:
        runner.fit(BATCHES)
    assert [warning.filename for warning in seen] == [__file__]
    model[1].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner.fit(BATCHES)


def test_a_layer_that_was_replaced_or_unfrozen_after_the_optimizer_was_made_warns():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).requires_grad_(False))
    runner = Runner(model, sgd(model[0]), LOSS)
    runner.fit(BATCHES)
    model.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"will not train: 1.weight, 1.bias\. Add"):
        runner.fit(BATCHES)
    model[1] = nn.Identity()
    model[0] = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="an optimizer of the model's 2 trainable parameters, got one"):
        runner.fit(BATCHES)


@pytest.mark.parametrize(
    ("layer", "criterion"), [(nn.Softmax(1), nn.CrossEntropyLoss()), (nn.Sigmoid(), nn.BCEWithLogitsLoss())]
)
def test_a_softmax_before_a_loss_that_contains_it_warns(layer, criterion):
    model = nn.Sequential(nn.Linear(1, 2), layer)
    name = type(layer).__name__
    with pytest.warns(UserWarning, match=f"contains the {name.lower()}, .* Leave nn.{name} out of the model") as seen:
        Runner(model, sgd(model), criterion)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Runner(model, sgd(model), nn.MSELoss())
        Runner(model[:1], sgd(model), criterion)


def test_a_frozen_model_can_be_evaluated_and_not_trained():
    model = nn.Linear(1, 1).requires_grad_(False)
    runner = Runner(model, sgd(model), LOSS)
    assert runner.evaluate(BATCHES)["val/loss"] == pytest.approx(float(model.bias) ** 2)
    assert runner.predict(BATCHES).shape == (2, 1)
    with pytest.raises(ValueError, match=r"got only frozen ones. .* to train: model.requires_grad_\(True\)"):
        runner.fit(BATCHES)
    model.requires_grad_(True)
    assert len(runner.fit(BATCHES)) == 1


def test_a_criterion_trains_behind_a_frozen_model():
    model, criterion = nn.Linear(1, 4).requires_grad_(False), nn.AdaptiveLogSoftmaxWithLoss(4, 3, [1])
    optimizer = torch.optim.SGD(criterion.parameters(), lr=0.1)
    before = criterion.head.weight.detach().clone()
    runner = Runner(model, optimizer, lambda output, target: criterion(output, target).loss)
    runner.fit([(torch.ones(2, 1), torch.tensor([0, 1]))])
    assert not torch.equal(criterion.head.weight, before)


def test_a_model_on_two_devices_is_refused():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, device="meta"))
    with pytest.raises(
        ValueError,
        match=r"got it on 2 devices \(0.weight on cpu, 1.weight on meta\)\. Move it: model.to\(device\)",
    ):
        Runner(model, sgd(model), LOSS)


@pytest.mark.parametrize(
    ("criterion", "error", "message"),
    [
        (lambda output, target: None, TypeError, "expected criterion to return a scalar tensor, got None"),
        (
            lambda output, target: 0.5,
            TypeError,
            "criterion to return a scalar tensor, got 0.5. Leave out item",
        ),
        (nn.MSELoss(reduction="none"), ValueError, r"a scalar tensor, got shape \(2, 1\). Use its mean"),
        (lambda output, target: output.detach().mean(), ValueError, "expected a loss with a graph"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_is_refused(criterion, error, message):
    model = nn.Linear(1, 1)
    with pytest.raises(error, match=message):
        Runner(model, sgd(model), criterion).fit(BATCHES)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            lambda output: {"loss": {"loss": output.mean(), "kl": output}},
            ValueError,
            r"the loss 'kl' to be a scalar, got a tensor of shape \(4, 1\). Use its mean",
        ),
        (
            lambda output: {"batch_size": torch.tensor(4)},
            TypeError,
            r"state.batch_size to be an int, .* got a tensor. Set state.weight",
        ),
        (
            lambda output: {"weight": torch.ones(4)},
            ValueError,
            r"state.weight to be a number or a 0-dim tensor, got shape \(4,\). Use its sum\(\)",
        ),
    ],
    ids=["a part of the loss", "batch_size", "weight"],
)
def test_what_forward_sets_is_checked_before_the_first_step(fields, error, message):
    class Own(Runner):
        def forward(self):
            output = self.state.model(self.state.input)
            self.state.loss = output.mean()
            for name, value in fields(output).items():
                setattr(self.state, name, value)

    model = nn.Linear(2, 1)
    before = model.weight.clone()
    with pytest.raises(error, match=message):
        Own(model, sgd(model), None).fit([torch.ones(4, 2)])
    assert torch.equal(model.weight, before)


def test_evaluation_needs_no_graph():
    model = nn.Linear(1, 1)
    Runner(model, sgd(model), lambda output, target: output.detach().mean()).evaluate(BATCHES)


def mae(output, target):
    return (output - target).abs().mean()


@pytest.mark.parametrize(
    ("metrics", "error", "message"),
    [
        ([mae, mae], ValueError, "metrics with different names, got two named 'mae'"),
        (
            [type("loss", (), {"__call__": mae})()],
            ValueError,
            "metrics with names other than 'loss', the name of the criterion",
        ),
        (mae, TypeError, r"expected metrics to be a list of metrics, got function. Write metrics=\[...\]"),
        ({"mae": mae}, TypeError, r"expected metrics to be a list of metrics, got dict. Write metrics=\[...\]"),
        (
            [3],
            TypeError,
            r"metrics, got an object of int. Pass one with update\(output, target\), compute\(\) and reset\(\)",
        ),
        ([nn.L1Loss], TypeError, r"expected metrics, got the class L1Loss. Pass an object: L1Loss\(...\)"),
    ],
)
def test_metrics_that_are_wrong_or_share_a_name_are_refused(metrics, error, message):
    model = nn.Linear(1, 1)
    with pytest.raises(error, match=message):
        Runner(model, sgd(model), LOSS, metrics)


def test_wrong_precision_and_accumulation_are_refused():
    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="expected use_fp16 or use_bf16, got both"):
        Runner(model, sgd(model), LOSS, use_fp16=True, use_bf16=True)
    with pytest.raises(ValueError, match="expected accumulate_steps to be 1 or more, got 0"):
        Runner(model, sgd(model), LOSS, accumulate_steps=0)
    with pytest.raises(TypeError, match=r"expected accumulate_steps to be a whole number, got 2\.0"):
        Runner(model, sgd(model), LOSS, accumulate_steps=2.0)


@pytest.mark.parametrize("name", ["epochs", "steps_per_epoch", "val_steps", "validate_every"])
@pytest.mark.parametrize("value", [0, -1])
def test_wrong_numbers_of_epochs_and_steps_are_refused(name, value):
    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=f"expected {name} to be 1 or more, got {value}"):
        Runner(model, sgd(model), LOSS).fit(BATCHES, **{name: value})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"validate_every": 3, "val_loader": BATCHES},
            "val_loader is not used, .* validate_every=3 is above epochs=2$",
        ),
        ({"validate_every": 2}, r"validate_every has no effect without a val_loader. Pass val_loader=\.\.\.$"),
        ({"val_steps": 1}, "val_steps has no effect without a val_loader"),
        ({"validate_every": 2, "val_loader": BATCHES, "val_steps": 1}, None),
    ],
)
def test_a_run_that_will_not_validate_as_asked_warns(options, text):
    model = nn.Linear(1, 1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Runner(model, sgd(model), LOSS).fit(BATCHES, epochs=2, **options)
    assert [warning.filename for warning in seen] == ([__file__] if text else [])
    assert not text or re.search(text, str(seen[0].message))


def test_wrong_steps_of_evaluate_and_predict_are_refused():
    model = nn.Linear(1, 1)
    runner = Runner(model, sgd(model), LOSS)
    for call in (runner.evaluate, runner.predict):
        with pytest.raises(ValueError, match="expected steps to be 1 or more, got 0"):
            call(BATCHES, steps=0)


def test_arguments_in_another_order_are_named():
    model = nn.Linear(1, 1)
    order = r"Pass Runner\(model, optimizer, criterion, metrics, callbacks\) in this order"
    with pytest.raises(TypeError, match=f"expected optimizer to be a torch.optim.Optimizer, got MSELoss. {order}"):
        Runner(model, LOSS, sgd(model))
    with pytest.raises(TypeError, match=f"expected criterion to be a function .* got SGD. {order}"):
        Runner(model, sgd(model), sgd(model))
    with pytest.raises(TypeError, match=r"got None. Pass nn.CrossEntropyLoss\(\), .* override Runner.forward"):
        Runner(model, sgd(model), None)
    with pytest.raises(TypeError, match=f"expected model to be a torch.nn.Module, got SGD. {order}"):
        Runner(sgd(model), model, LOSS)
    with pytest.raises(
        TypeError, match=f"expected callbacks, got an object of L1Loss. Pass objects of .*Callback. {order}"
    ):
        Runner(model, sgd(model), LOSS, [], [nn.L1Loss()])
    with pytest.raises(TypeError, match=r"expected callbacks, got the class Callback. Pass an object: Callback"):
        Runner(model, sgd(model), LOSS, [], [Callback])
    with pytest.raises(
        TypeError, match=r"expected callbacks to be a list of callbacks, got Callback. Write callbacks=\[...\]"
    ):
        Runner(model, sgd(model), LOSS, [], Callback())


def test_callbacks_and_metrics_may_come_from_a_generator():
    model = nn.Linear(1, 1)
    callback = Callback()
    runner = Runner(model, sgd(model), LOSS, (f for f in [nn.functional.l1_loss]), (c for c in [callback]))
    assert runner.state.callbacks == [callback]
    assert [metric.name for metric in runner.state.metrics] == ["l1_loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda m, o: (nn.Linear, o, LOSS), r"model to be an object, got the class Linear. Pass Net\(\)"),
        (
            lambda m, o: (m, torch.optim.Adam, LOSS),
            r"optimizer to be an object, got the class Adam. Pass torch.optim.Adam\(model.param",
        ),
        (
            lambda m, o: (m, o, nn.CrossEntropyLoss),
            r"criterion to be an object, got the class CrossEntropyLoss. Pass nn.CrossEntropyLoss\(\)",
        ),
        (lambda m, o: (m, "adam", LOSS), r"optimizer to be an object, got the string 'adam'"),
        (lambda m, o: (m, o, "mse"), r"criterion to be an object, got the string 'mse'. Pass nn.CrossEntropyLoss"),
        (
            lambda m, o: (m, o, LOSS, ["accuracy"]),
            r"expected metrics, got the string 'accuracy'. Pass .*fit_metrics.Accuracy",
        ),
        (lambda m, o: (m, o, LOSS, "accuracy"), r"got the string 'accuracy'. .*metrics=\[fit_metrics.Accuracy\(\)\]"),
    ],
)
def test_classes_and_names_in_place_of_objects(arguments, message):
    model = nn.Linear(1, 1)
    with pytest.raises(TypeError, match=message):
        Runner(*arguments(model, sgd(model)))


def test_fit_inside_a_hook_of_the_same_run_is_refused():
    class Again(Callback):
        def on_epoch_end(self, state):
            runner.fit(BATCHES)

    model = nn.Linear(1, 1)
    runner = Runner(model, sgd(model), LOSS, (), [Again()])
    with pytest.raises(RuntimeError, match=r"got a call of fit inside a run of it. A hook may call evaluate"):
        runner.fit(BATCHES)
    runner.state.callbacks.clear()
    assert len(runner.fit(BATCHES)) == 1


@pytest.mark.parametrize("outer", ["fit", "evaluate"])
@pytest.mark.parametrize("inner", ["fit", "evaluate", "predict"])
def test_a_second_thread_is_refused(outer, inner):
    errors = []

    class Meanwhile(Callback):
        def on_loader_end(self, state):
            with futures.ThreadPoolExecutor(1) as pool:
                errors.append(pool.submit(getattr(runner, inner), BATCHES).exception())

    model = nn.Linear(1, 1)
    runner = Runner(model, sgd(model), LOSS, (), [Meanwhile()])
    expected = getattr(runner, outer)(BATCHES)
    (error,) = errors
    assert isinstance(error, RuntimeError)
    assert re.search("one thread to use this Runner|got a call of fit inside a run of it", str(error))
    assert expected
    runner.state.callbacks.clear()
    with futures.ThreadPoolExecutor(1) as pool:  # one after the other is fine
        assert pool.submit(getattr(runner, inner), BATCHES).result() is not None


def test_nothing_is_shared_between_runners():
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    one, two = Runner(first, sgd(first), LOSS), Runner(second, sgd(second), LOSS)
    assert one.state.callbacks is not two.state.callbacks
    assert one.state.logs is not two.state.logs
    assert one.state.loss_meters is not two.state.loss_meters
