"""Metrics of one's own, plain functions, and torchmetrics' objects as they are."""

import contextlib

import pytest
import torch
from fit_core import Callback, Mean, Runner
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

torchmetrics = pytest.importorskip("torchmetrics")


def batches(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(n, 4, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


def runner(metrics=(), callbacks=(), lr=0.1, **options):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Runner(model, optimizer, nn.CrossEntropyLoss(), metrics, callbacks, **options)


def accuracy(output, target):
    return (output.argmax(1) == target).float().mean()


def test_torchmetrics_objects_are_metrics_as_they_are():
    theirs = torchmetrics.classification.MulticlassAccuracy(3, average="micro")
    history = runner([theirs, accuracy]).fit(batches(5, 5, 2), epochs=2, val_loader=batches(7, 1))
    for row in history:
        for part in ("train", "val"):
            assert row[f"{part}/MulticlassAccuracy"] == pytest.approx(row[f"{part}/accuracy"], abs=1e-6)


def test_a_collection_logs_each_of_its_metrics():
    collection = torchmetrics.MetricCollection(
        [torchmetrics.classification.MulticlassAccuracy(3), torchmetrics.classification.MulticlassF1Score(3)]
    )
    result = runner([collection]).evaluate(batches(9))
    assert result.keys() == {"val/loss", "val/MulticlassAccuracy", "val/MulticlassF1Score"}


def test_torchmetrics_resume_inside_an_epoch():
    saved = []

    class Save(Callback):
        def on_checkpoint(self, state):
            import io

            buffer = io.BytesIO()
            torch.save(state.state_dict(), buffer)
            buffer.seek(0)
            saved.append(torch.load(buffer, weights_only=True))

    def metric():
        return torchmetrics.classification.MulticlassAccuracy(3, average="micro")

    gold = runner([metric()], [Save()]).fit(batches(4, 4, 3))
    again = runner([metric()])
    again.state.load_state_dict(saved[1])
    assert again.fit(batches(4, 4, 3)) == gold


class Constant:
    def __init__(self, value, name=None):
        self.value = value
        if name:
            self.name = name

    def reset(self):
        pass

    def update(self, output, target):
        pass

    def compute(self):
        return self.value


def test_names_and_values():
    metrics = [
        Constant(torch.tensor([0.5]), "one entry"),
        Constant(torch.zeros(3), "a vector"),
        Constant(2),
        Constant({"a": 1, "b": torch.tensor(3.0)}, "dict"),
    ]
    result = runner(metrics).evaluate(batches(2))
    del result["val/loss"]
    assert result == {"val/one entry": 0.5, "val/Constant": 2.0, "val/a": 1.0, "val/b": 3.0}
    assert all(type(value) is float for value in result.values())


def test_nested_dicts_are_flattened_and_the_rest_is_skipped():
    value = {"f1": {"cat": 0.5, "dog": {"big": torch.tensor(1)}}, "matrix": torch.ones(2, 2), "note": "2", "none": None}
    with pytest.warns(UserWarning, match="is not logged: expected a number") as warned:
        result = runner([Constant(value, "scores")]).evaluate(batches(2))
    assert [str(warning.message).split()[0] for warning in warned] == ["note", "none"]
    del result["val/loss"]
    assert result == {"val/f1/cat": 0.5, "val/f1/dog/big": 1.0}


def test_a_function_goes_by_the_name_that_it_was_given():
    def share_of(kind):
        def share(output, target):
            return (target == kind).float().mean()

        share.name = f"share of {kind}"
        return share

    result = runner([share_of(0), share_of(1), accuracy]).evaluate(batches(4))
    assert result.keys() == {"val/loss", "val/share of 0", "val/share of 1", "val/accuracy"}


@pytest.mark.parametrize("shape", [(1,), (5,), (5, 3)])
def test_a_function_that_forgets_the_mean_is_told(shape):
    def each(output, target):
        return torch.ones(shape)

    with pytest.raises(
        TypeError, match=r"the metric each to return .*, got a tensor of shape \(.*\)\. Return value.mean\(\)"
    ):
        runner([each]).evaluate(batches(5))


def test_values_of_one_name_come_behind_the_name_of_their_metric():
    metrics = [Constant(1, "a"), Constant({"a": 2, "c": 3}, "b"), Constant({"a": 4, "loss": 5, "d": {"e": 6}}, "f")]
    result = runner(metrics).evaluate(batches(2))
    del result["val/loss"]
    assert result == {"val/a": 1, "val/b/a": 2, "val/c": 3, "val/f/a": 4, "val/f/loss": 5, "val/d/e": 6}
    with pytest.raises(ValueError, match="results with different names, got two named 'b/a'"):
        runner([Constant({"a": 1, "b/a": 2}, "b"), Constant({"a": 3}, "c")]).evaluate(batches(2))


def test_two_wrappers_of_torchmetrics_can_be_told_apart():
    wrappers = []
    for name, average in (("micro", "micro"), ("macro", "macro")):
        wrapper = torchmetrics.MinMaxMetric(torchmetrics.Accuracy(task="multiclass", num_classes=3, average=average))
        wrapper.name = name
        wrappers.append(wrapper)
    row = runner(wrappers).fit(batches(4, 4))[0]
    names = {f"{name}/{part}" for name in ("micro", "macro") for part in ("raw", "min", "max")}
    assert {key.removeprefix("train/") for key in row} == names | {"epoch", "loss", "lr"}


@pytest.mark.parametrize("value", [1j, torch.tensor(1j), (torch.ones(3), torch.ones(3)), None, "0.5"])
def test_what_is_not_a_number_is_named_and_skipped(value):
    with pytest.warns(UserWarning, match=r"odd is not logged: expected a number, .* Return a number from"):
        assert runner([Constant(value, "odd")]).evaluate(batches(2)).keys() == {"val/loss"}


def test_metrics_see_outputs_without_a_graph_kept():
    class Keeps(Constant):
        def update(self, output, target):
            self.value = output.square().mean()
            assert not self.value.requires_grad

    runner([Keeps(0.0)]).fit(batches(2))


def test_a_mean_is_weighted_and_nan_without_samples():
    mean = Mean()
    assert torch.isnan(mean.compute())
    mean.update(torch.tensor(1.0), 3)
    mean.update(5.0, 1)
    assert float(mean.compute()) == 2.0
    mean.reset()
    assert torch.isnan(mean.compute())


class Reads(TorchDispatchMode):
    """Counts how often a value is read back from the device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"accumulate_steps": 3}, {"use_bf16": True}])
def test_no_step_reads_a_value_back(options):
    def reads(count):
        run = runner([accuracy], **options)
        with Reads() as mode:
            run.fit(batches(*[4] * count), val_loader=batches(*[4] * count))
        return mode.count

    assert reads(3) == reads(30) > 0


def test_evaluation_inside_a_run_leaves_the_run_alone():
    train, extra = batches(4, 4, 3), batches(5)

    class Extra(Callback):
        def on_epoch_end(self, state):
            state.logs["extra/loss"] = run.evaluate(extra)["val/loss"]
            run.predict(extra)

        def on_batch_end(self, state):
            if state.is_train and state.batch_idx == 1:
                run.evaluate(extra)
                assert state.model.training

    plain = runner([accuracy]).fit(train, epochs=2, val_loader=train)
    run = runner([accuracy], [Extra()])
    history = run.fit(train, epochs=2, val_loader=train)
    assert [{k: v for k, v in row.items() if k != "extra/loss"} for row in history] == plain
    assert history[-1]["extra/loss"] == run.evaluate(extra)["val/loss"]
    assert run.state.global_step == 6


@pytest.mark.parametrize("hook", ["on_loader_begin", "on_batch_end", "on_loader_end", "on_epoch_end", "on_checkpoint"])
def test_an_evaluation_leaves_the_metrics_that_later_callbacks_read(hook):
    def evaluate(self, state):
        if state.loader_name != "extra":
            run.evaluate(batches(3), name="extra")

    def read(self, state):
        if state.loader_name != "extra":
            seen[-1].append(float(state.metrics[0].compute()))

    seen = []
    for first in (type("Evaluates", (Callback,), {hook: evaluate}), Callback):
        seen.append([])
        run = runner([accuracy], [first(), type("Reads", (Callback,), {hook: read})()])
        run.fit(batches(4, 4, 3), epochs=2, val_loader=batches(5))
    assert seen[0] == pytest.approx(seen[1], nan_ok=True)


def test_evaluation_after_a_stop_inside_an_epoch_leaves_what_the_run_goes_on_with():
    class Stop(Callback):
        def on_batch_end(self, state):
            state.should_stop = state.batch_idx == 1

    run = runner([accuracy], [Stop()])
    run.fit(batches(4, 4, 3))
    before = run.state.state_dict()["ranks"][0]["metrics"]
    assert before["accuracy"]["weight"] == 8
    assert run.evaluate(batches(5)).keys() == {"val/loss", "val/accuracy"}
    assert run.state.state_dict()["ranks"][0]["metrics"] == before


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_evaluation_after_a_stop_or_an_error_starts_with_empty_metrics(is_train, fails):
    class Stop(Callback):
        def on_batch_end(self, state):
            if self in state.callbacks and state.is_train == is_train and state.batch_idx == 1:
                if fails:
                    raise RuntimeError("broken off")
                state.should_stop = True

    class Samples(Constant):
        def reset(self):
            self.value = 0

        def update(self, output, target):
            self.value += len(target)

    samples = Samples(0, "samples")
    run = runner([samples], [Stop()])
    with contextlib.suppress(RuntimeError):
        run.fit(batches(4, 4, 4), val_loader=batches(4, 4, 4))
    run.state.callbacks.clear()
    assert samples.compute() == 8
    assert run.evaluate(batches(5, 3))["val/samples"] == 8
    assert run.fit(batches(5, 2))[0]["train/samples"] == 7


def test_evaluate_after_an_early_stop_is_not_stopped():
    class Stop(Callback):
        def on_epoch_end(self, state):
            state.should_stop = True

    run = runner(callbacks=[Stop()], lr=0.0)
    history = run.fit(batches(2, 2, 2), epochs=5, val_loader=batches(2, 2, 2))
    assert len(history) == 1
    assert run.evaluate(batches(2, 2, 2))["val/loss"] == history[0]["val/loss"]
