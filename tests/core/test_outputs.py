"""Outputs of predict and for metrics: without graphs, in float32, and refused at once if they cannot be joined."""

import warnings
import weakref

import pytest
import torch
from fit_core import Callback, Runner
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, WeightedRandomSampler

functional = nn.functional


class Returns(nn.Module):
    """Returns the next of a list of outputs for each batch."""

    def __init__(self, *outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.outputs = iter(outputs)

    def forward(self, input):
        return next(self.outputs)


def make(model, metrics=(), callbacks=(), criterion=functional.mse_loss, **options):
    return Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), criterion, metrics, callbacks, **options)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4)),
        (torch.zeros(2, 3), torch.zeros(2, 3, 1)),
        (torch.zeros(()), torch.zeros(2)),
        (torch.zeros(2, 3), None),
        ({"a": torch.zeros(2), "b": torch.zeros(2, 3)}, {"a": torch.zeros(2)}),
        ({"a": (torch.zeros(2, 3), None)}, {"a": (torch.zeros(2, 4), None)}),
        ((torch.zeros(2),), (torch.zeros(2), torch.zeros(2))),
    ],
)
def test_outputs_that_cannot_be_joined_are_refused_at_their_batch(first, second):
    fetched = []

    def inputs():
        for number in range(100):
            fetched.append(number)
            yield torch.zeros(2, 1)

    with pytest.raises(ValueError, match=r"such as that of batch 1, .* in batch 2\. Pad the outputs"):
        make(Returns(first, second)).predict(inputs())
    assert fetched == [0, 1]


def test_a_forward_that_sets_no_output_cannot_predict():
    class Forgets(Runner):
        def forward(self):
            self.state.loss = self.state.model(self.state.input).mean()

    model = nn.Linear(1, 1)
    runner = Forgets(model, torch.optim.SGD(model.parameters(), lr=0.1), None)
    with pytest.raises(ValueError, match=r"expected an output to predict, got None. Set self.state.output in Runner"):
        runner.predict([torch.zeros(2, 1)])


@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True},
        {"sampler": WeightedRandomSampler([1.0] * 4, 4)},
        {"sampler": DistributedSampler(range(4), num_replicas=2, rank=0)},
    ],
)
def test_predict_warns_of_a_loader_in_another_order_than_its_dataset(options):
    runner = make(nn.Linear(1, 1))
    with pytest.warns(
        UserWarning, match="the loader shuffles, so the outputs are not in the order of its dataset"
    ) as seen:
        runner.predict(DataLoader(torch.zeros(4, 1), batch_size=2, **options))
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner.predict(DataLoader(torch.zeros(4, 1), batch_size=2))


def test_the_message_shows_both_outputs():
    with pytest.raises(ValueError, match=r"batch 1, float32\(2, 3\) on cpu, got float32\(2, 4\) on cpu in batch 2"):
        make(Returns(torch.zeros(2, 3), torch.zeros(2, 4))).predict([torch.zeros(2, 1)] * 2)


def test_dicts_are_joined_by_key_and_not_by_order():
    model = Returns({"a": torch.zeros(2), "b": torch.ones(2)}, {"b": torch.ones(2), "a": torch.zeros(2)})
    joined = make(model).predict([torch.zeros(2, 1)] * 2)
    assert joined["a"].tolist() == [0, 0, 0, 0]
    assert joined["b"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("options", [{"use_bf16": True}, {"use_fp16": True}])
def test_outputs_of_autocast_arrive_in_float32(options):
    model = nn.Linear(4, 2)
    inputs = torch.randn(8, 4)
    output = make(model, **options).predict([inputs, inputs])
    with torch.autocast("cpu", torch.bfloat16 if "use_bf16" in options else torch.float16):
        expected = model(inputs).float()
    assert output.dtype == torch.float32
    assert torch.equal(output[:8], expected)
    output.numpy()


def test_a_model_in_bfloat16_keeps_its_dtype():
    assert make(nn.Linear(4, 2).bfloat16()).predict([torch.zeros(2, 4).bfloat16()]).dtype == torch.bfloat16


class Enables(nn.Module):
    """Needs gradients inside, as a model of forces does, and notes which of its outputs are alive."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)
        self.saved = []

    def forward(self, input):
        with torch.enable_grad():
            inside = self.linear(input).exp()  # which exp keeps for its gradient
            self.saved.append(weakref.ref(inside))
            return inside * inside

    def alive(self):
        return sum(saved() is not None for saved in self.saved)


class Stores:
    """A metric that needs all outputs, and detaches none."""

    name = "stores"

    def reset(self):
        self.outputs = []

    def update(self, output, target):
        self.outputs.append({"output": output["output"], "target": target})

    def compute(self):
        return torch.cat([batch["output"] for batch in self.outputs]).mean()


class Most(Callback):
    """Notes how many graphs are alive after a batch."""

    def __init__(self):
        self.alive = []

    def on_batch_end(self, state):
        self.alive.append(state.model.alive())


class Nested(Runner):
    def forward(self):
        state = self.state
        state.output = {"output": state.model(state.input)}
        state.loss = state.output["output"].mean()


def test_predict_keeps_no_graphs():
    model, most = Enables(), Most()
    output = make(model, callbacks=[most]).predict([torch.randn(8, 4) for _ in range(12)])
    assert not output.requires_grad
    assert max(most.alive) == 1


@pytest.mark.parametrize("verb", ["fit", "evaluate"])
def test_metrics_keep_no_graphs(verb):
    model, most, metric = Enables(), Most(), Stores()
    runner = Nested(model, torch.optim.SGD(model.parameters(), lr=0.01), None, [metric], [most])
    getattr(runner, verb)([(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(12)])
    assert len(metric.outputs) == 12
    assert not any(batch["output"].requires_grad for batch in metric.outputs)
    assert max(most.alive) <= 1


@pytest.mark.parametrize("options", [{}, {"use_bf16": True}, {"use_fp16": True}])
@pytest.mark.parametrize(
    ("criterion", "target"),
    [
        (functional.mse_loss, torch.randn(64, 3)),
        (functional.l1_loss, torch.randn(64, 3)),
        (functional.cross_entropy, torch.randint(3, (64,))),
        (functional.binary_cross_entropy_with_logits, torch.rand(64, 3)),
    ],
)
def test_a_metric_sees_what_the_loss_sees(criterion, target, options):
    """Autocast computes these losses in float32, and a metric outside of it would round the same function."""
    torch.manual_seed(0)

    def same(output, target):
        return criterion(output, target)

    runner = make(nn.Linear(4, 3), [same], criterion=criterion, **options)
    row = runner.fit([(torch.randn(64, 4), target)] * 3)[0]
    assert row["train/loss"] == row["train/same"]
