"""Batches of any nesting reach the model's device and come back joined. Anything that is not a batch is refused."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fit_core import Callback, Runner
from fit_core.batch import SampleCounter, to_device
from fit_core.outputs import concat
from torch import nn

Point = namedtuple("Point", "x y")


@dataclass(frozen=True)
class Boxes:
    corners: torch.Tensor
    label: str


CPU, META = torch.device("cpu"), torch.device("meta")


def test_tensors_in_any_nesting_are_moved():
    one = torch.zeros(2)
    batch = {
        "list": [one, "name", 3, None],
        "tuple": (one, 2.5),
        "point": Point(one, one),
        "boxes": Boxes(one, "cat"),
        "ordered": OrderedDict(a=one),
    }
    moved = to_device(batch, META)
    assert moved["list"][0].device == META
    assert moved["list"][1:] == ["name", 3, None]
    assert moved["tuple"][0].device == META
    assert isinstance(moved["point"], Point)
    assert moved["point"].y.device == META
    assert isinstance(moved["boxes"], Boxes)
    assert (moved["boxes"].corners.device, moved["boxes"].label) == (META, "cat")
    assert isinstance(moved["ordered"], OrderedDict)
    assert moved["ordered"]["a"].device == META
    assert batch["boxes"].corners.device == CPU  # the loader's own batch is left alone


def test_a_tensor_in_its_place_is_not_copied():
    one = torch.zeros(2)
    assert to_device(one, CPU) is one


def test_objects_with_a_to_method_move_themselves():
    packed = nn.utils.rnn.pack_sequence([torch.ones(2, 1), torch.ones(1, 1)])
    assert to_device(packed, META).data.device == META


@pytest.mark.parametrize("value", [np.zeros(2), {1, 2}, object()])
def test_what_cannot_be_moved_is_named(value):
    model = nn.Linear(1, 1)
    runner = Runner(model, torch.optim.SGD(model.parameters()), nn.MSELoss())
    kind = type(value).__name__
    with pytest.raises(
        TypeError,
        match=f"expected tensors in the batch, got a .*{kind}, which cannot be moved to cpu. Convert it to a tensor",
    ):
        runner.fit([(value, torch.zeros(2))])


@pytest.mark.parametrize(
    ("batch", "came"),
    [
        ({"x": torch.zeros(2, 1)}, "a dict of 1"),
        (torch.zeros(2, 1), "a Tensor"),
        ((torch.zeros(2, 1),), "a tuple of 1"),
        ((torch.zeros(2, 1),) * 3, "a tuple of 3"),
        ((torch.zeros(2, 1), None), "a tuple of 2"),
    ],
)
def test_a_batch_that_is_not_a_pair_names_forward(batch, came):
    model = nn.Linear(1, 1)
    runner = Runner(model, torch.optim.SGD(model.parameters()), nn.MSELoss())
    for call in (runner.fit, runner.evaluate):
        with pytest.raises(
            TypeError, match=rf"pairs \(input, target\), .* got {came[:2].strip()} ?{came[2:].strip()}.* Runner.forward"
        ):
            call([batch])


IMAGE = torch.zeros(3, 4, 4)
LIST_LOADER = SimpleNamespace(batch_size=None)


@pytest.mark.parametrize(
    ("input", "target", "samples"),
    [
        (torch.zeros(4, 2), torch.zeros(4), 4),
        (torch.zeros(4, 2), 1.5, 4),  # a target without any length
        (torch.zeros(1, 2), torch.zeros(()), 1),
        ({"scalar": torch.zeros(()), "x": torch.zeros(4, 1)}, torch.zeros(4), 4),
        ({"name": "abc", "x": torch.zeros(4, 1)}, torch.zeros(4), 4),
        ((torch.zeros(5, 1), torch.zeros(5, 2)), torch.zeros(5), 5),
        ([IMAGE] * 8, torch.zeros(8), 8),
        ([IMAGE] * 8, [{"boxes": torch.zeros(n, 4)} for n in (1, 2, 5, 9, 4, 1, 2, 7)], 8),
        (Boxes(torch.zeros(7, 4), "cat"), torch.zeros(7), 7),
        (["a", "b"], torch.zeros(2), 2),
        (nn.utils.rnn.pack_sequence([torch.ones(2, 1), torch.ones(1, 1)]), torch.zeros(2), 2),
        (torch.zeros(6, 2), None, 6),  # a batch that is not a pair, for a forward of the user's own
        ({"input_ids": torch.zeros(6, 9), "labels": torch.zeros(6, 9)}, None, 6),
        # Ambiguous:
        (torch.zeros(9, 4), torch.zeros(4), None),  # text with the time first
        (torch.zeros(4, 9), torch.zeros(36), None),  # flattened targets
        ((torch.zeros(20, 3), torch.zeros(2, 50)), torch.zeros(7), None),  # a graph
        ({"x": torch.zeros(20, 3), "edges": torch.zeros(2, 50)}, None, None),
        ([IMAGE] * 8, None, None),
        ([torch.zeros(5, 1)] * 2, [torch.zeros(5, 1)] * 2, None),
        ([IMAGE] * 2, [{"boxes": torch.zeros(3, 4)}] * 2, None),
        (3, None, None),
    ],
)
def test_samples_are_the_length_that_input_and_target_agree_on(input, target, samples):
    assert SampleCounter(LIST_LOADER).count(input, target) == samples


def test_where_a_list_could_be_read_in_two_ways_the_batch_size_decides():
    loader = SimpleNamespace(batch_size=5)
    fields, images = SampleCounter(loader), SampleCounter(SimpleNamespace(batch_size=2))
    assert fields.count([torch.zeros(5, 1)] * 2, [torch.zeros(5, 1)] * 2) == 5
    assert fields.count([torch.zeros(3, 1)] * 2, [torch.zeros(3, 1)] * 2) == 3  # the short last batch
    assert images.count([IMAGE] * 2, [{"boxes": torch.zeros(3, 4)}] * 2) == 2
    assert images.count([IMAGE], [{"boxes": torch.zeros(3, 4)}]) == 1


def test_a_list_is_read_as_in_an_earlier_batch_that_left_no_choice():
    counter = SampleCounter(LIST_LOADER)
    assert counter.count([IMAGE] * 2, [{"boxes": torch.zeros(n, 4)} for n in (1, 4)]) == 2
    assert counter.count([IMAGE] * 2, [{"boxes": torch.zeros(3, 4)}] * 2) == 2


@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_a_batch_whose_samples_cannot_be_counted_is_refused_before_the_first_step(method):
    model = nn.Linear(4, 1)
    before = model.weight.clone()
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda output, target: output.mean())
    with pytest.raises(
        ValueError, match=r"expected input and target of one length.* Set state.batch_size in a callback's on_batch"
    ):
        getattr(runner, method)([(torch.ones(9, 2, 4), torch.ones(2))])
    assert torch.equal(model.weight, before)


def test_a_callback_may_correct_the_number_of_samples():
    class Images(Callback):
        def on_batch_begin(self, state):
            state.batch_size = len(state.input)

    model = nn.Linear(4, 1)
    runner = Runner(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        lambda output, target: output.sum() * 0 + target.mean(),
        (),
        [Images()],
    )
    runner._make_step = lambda: setattr(runner.state, "loss", runner.state.target.mean())
    batches = [([torch.zeros(3, 4)] * 5, torch.ones(5)), ([torch.zeros(3, 4)], torch.full((1,), 7.0))]
    assert runner.evaluate(batches)["val/loss"] == 2.0


class Twice(nn.Module):
    """Several inputs, several outputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, batch):
        return {"sum": self.linear(batch["a"] + batch["b"]), "parts": (batch["a"], [batch["b"]])}


def test_several_inputs_and_outputs_through_the_loss():
    torch.manual_seed(0)
    model = Twice()

    def criterion(output, target):
        return nn.functional.mse_loss(output["sum"], target["y"]) + 0.1 * output["parts"][0].mean()

    batches = [({"a": torch.randn(n, 2), "b": torch.randn(n, 2)}, {"y": torch.zeros(n, 2)}) for n in (3, 3, 2)]
    runner = Runner(model, torch.optim.Adam(model.parameters(), lr=0.1), criterion)
    history = runner.fit(batches, epochs=20)
    assert history[-1]["train/loss"] < 0.5 * history[0]["train/loss"]
    outputs = runner.predict(batches)
    assert outputs["sum"].shape == (8, 2)
    assert torch.equal(outputs["parts"][1][0], torch.cat([batch["b"] for batch, _ in batches]))


def test_predict_takes_inputs_alone_and_keeps_their_order():
    model = nn.Linear(2, 1)
    runner = Runner(model, torch.optim.SGD(model.parameters()), nn.MSELoss())
    inputs = torch.randn(7, 2)
    expected = model(inputs).detach()
    chunks = inputs.split(3)
    for loader in (
        chunks,
        [[chunk] for chunk in chunks],
        [(chunk, "target") for chunk in chunks],
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs), batch_size=3),
    ):
        outputs = runner.predict(loader)
        torch.testing.assert_close(outputs, expected)
        assert not outputs.requires_grad


def test_batches_without_a_loss_need_no_number_of_samples():
    class Graphs(Runner):
        def forward(self):
            state = self.state
            state.output = state.model(state.input["nodes"])
            if state.is_train:
                state.loss, state.batch_size = state.output.mean(), 1

    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    graphs = [{"nodes": torch.randn(5, 2), "edges": torch.zeros(2, 9)}] * 2
    runner = Graphs(model, torch.optim.SGD(model.parameters(), lr=0.1), None)
    assert runner.fit(graphs, val_loader=graphs)[0].keys() == {"epoch", "train/loss", "lr"}
    assert runner.evaluate(graphs) == {}
    assert runner.predict(graphs).shape == (10, 1)
    with pytest.raises(ValueError, match="can be read only once and has ended"):
        runner.evaluate(iter([]))


def test_outputs_are_joined_leaf_by_leaf():
    outputs = [Point(torch.tensor(float(n)), {"a": torch.full((n, 1), n), "b": "text"}) for n in (1, 2)]
    joined = concat(outputs, [1, 2])
    assert torch.equal(joined.x, torch.tensor([1.0, 2.0]))
    assert torch.equal(joined.y["a"], torch.tensor([[1], [2], [2]]))
    assert joined.y["b"] == ["text", "text"]


@pytest.mark.parametrize(
    ("outputs", "sizes"),
    [
        ([["cat", "dog"], ["cow", "hen"]], [2, 2]),
        ([[torch.zeros(5), torch.zeros(7)], [torch.zeros(2), torch.zeros(2)]], [2, 2]),
        ([[torch.zeros(2), torch.zeros(2)], [torch.zeros(2)]], [None, None]),  # the short last batch
        ([[{"boxes": torch.zeros(1, 4)}], [{"boxes": torch.zeros(1, 4)}]], [1, 1]),
        ([[torch.zeros(2, 1), torch.zeros(2, 9)]], [2]),
    ],
)
def test_a_list_with_an_entry_per_sample_is_extended(outputs, sizes):
    samples = [sample for output in outputs for sample in output]
    for joined in (concat(outputs, sizes), concat([{"inside": output} for output in outputs], sizes)["inside"]):
        assert len(joined) == len(samples)
        assert all(entry is sample for entry, sample in zip(joined, samples, strict=True))


@pytest.mark.parametrize("sizes", [(3, 3), (2, 1), (4, 2)])
def test_several_outputs_of_a_model_are_joined_each(sizes):
    first, second = concat([[torch.ones(size, 1), torch.ones(size, 9)] for size in sizes], sizes)
    assert (first.shape, second.shape) == ((sum(sizes), 1), (sum(sizes), 9))


def test_a_list_that_may_be_samples_or_outputs_is_refused():
    outputs = [[torch.ones(2, 1), torch.ones(2, 9)]] * 2
    with pytest.raises(ValueError, match=r"a list of 2 tensors, .* to a tuple of outputs, or to a list of dicts"):
        concat(outputs, [2, 2])
    first, second = concat([tuple(output) for output in outputs], [2, 2])
    assert (first.shape, second.shape) == ((4, 1), (4, 9))


def test_dataclasses_are_joined_field_by_field():
    boxes = concat([Boxes(torch.ones(1, 4), "cat"), Boxes(torch.ones(2, 4), "dog")], [1, 2])
    assert boxes.corners.shape == (3, 4)
    assert boxes.label == ["cat", "dog"]
