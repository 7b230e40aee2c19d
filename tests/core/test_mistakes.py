"""The note under torch's errors for common mistakes ends with the line to type."""

import re
import sys

import pytest
import torch
from fit_core import Callback, Runner
from torch import nn

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have notes since Python 3.11")

INPUT = torch.zeros(8, 4)
LABELS = torch.zeros(8, dtype=torch.long)
CE = nn.CrossEntropyLoss()


class FirstOf(nn.Module):
    """Returns a dict, or a list."""

    def __init__(self, kind):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.kind = kind

    def forward(self, input):
        output = self.linear(input)
        return {"logits": output} if self.kind is dict else [output, output]


class LeftBehind(nn.Module):
    """Has a tensor that does not move with it."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.scale = torch.ones(3, device="meta")

    def forward(self, input):
        return self.linear(input) * self.scale


def three():
    return nn.Linear(4, 3)


def one():
    return nn.Linear(4, 1)


def embedding():
    return nn.Sequential(nn.Embedding(5, 3))


@pytest.mark.parametrize(
    ("model", "criterion", "batch", "advice"),
    [
        (
            three,
            CE,
            (INPUT, LABELS + 3),
            "labels in 0..2, got 3. Correct them, or return 4 classes from the model",
        ),
        (three, CE, (INPUT, LABELS - 1), "labels in 0..2, got -1. .* or pass ignore_index=-1 to the loss"),
        (three, nn.functional.cross_entropy, (INPUT, LABELS + 3), "labels in 0..2, got 3"),
        (three, CE, (INPUT, LABELS.float()), r"class indices of torch.int64, got torch.float32. .* target.long\(\)"),
        (three, CE, (INPUT, LABELS.int()), r"class indices of torch.int64, got torch.int32. .* target.long\(\)"),
        (three, CE, (INPUT, LABELS[:, None]), r"got \(8, 3\) and \(8, 1\). Use target.squeeze\(1\)"),
        (three, CE, (INPUT, torch.zeros(8, 3).long()), r"a floating target of the output's shape, .* target.float\(\)"),
        (one, nn.BCEWithLogitsLoss(), (INPUT, LABELS[:, None]), r"got torch.int64. Convert it: target.float\(\)"),
        (one, nn.BCEWithLogitsLoss(), (INPUT, torch.ones(8)), r"got \(8, 1\) and \(8,\). Use target.unsqueeze\(1\)"),
        (lambda: nn.Sequential(one(), nn.Hardtanh(2, 3)), nn.BCELoss(), (INPUT, torch.ones(8, 1)), "BCEWithLogitsLoss"),
        (three, CE, (INPUT.double(), LABELS), r"expected an input of torch.float32, .* input.to\(torch.float32\)"),
        (three, CE, (INPUT.long(), LABELS), r"got torch.int64. Convert it: input.to\(torch.float32\)"),
        (embedding, CE, (LABELS.float(), LABELS), r"an input of indices, got torch.float32. .* input.long\(\)"),
        (embedding, CE, (LABELS + 7, LABELS), r"embedding, got 7..7. .* enlarge it: nn.Embedding\(8, ...\)"),
        (lambda: FirstOf(dict), CE, (INPUT, LABELS), r"a dict of 1. .* = state.model\(state.input\)\['logits'\]"),
        (lambda: FirstOf(list), CE, (INPUT, LABELS), r"a list of 2. .* = state.model\(state.input\)\[0\]"),
        (LeftBehind, CE, (INPUT, LABELS), r"every tensor on cpu, got one .* self.register_buffer\(name, tensor\)"),
    ],
)
@pytest.mark.parametrize("verb", ["fit", "evaluate"])
def test_a_common_mistake_gets_the_line_to_type(model, criterion, batch, advice, verb):
    model = model()
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), criterion)
    with pytest.raises((RuntimeError, ValueError, IndexError, TypeError, AttributeError)) as caught:
        getattr(runner, verb)([batch])
    (note,) = caught.value.__notes__
    last = note.splitlines()[-1]
    assert re.search(advice, last), last


def test_an_unknown_error_gets_the_shapes_and_no_advice():
    def fails(output, target):
        raise RuntimeError("a type of error that only this program has")

    model = one()
    with pytest.raises(RuntimeError) as caught:
        Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), fails).fit([(INPUT, torch.zeros(8, 1))])
    (note,) = caught.value.__notes__
    assert note.splitlines()[-1] == "  output: float32(8, 1) on cpu"


def test_a_last_batch_of_one_sample_does_not_suit_batch_norm():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), CE)
    with pytest.raises(ValueError, match="more than 1 value per channel") as caught:
        runner.fit([(INPUT, LABELS), (INPUT[:1], LABELS[:1])])
    (note,) = caught.value.__notes__
    assert note.endswith("for batch norm, got a batch of 1. Pass drop_last=True to the loader")


class ForgetsState(Runner):
    def forward(self):
        self.state.output = self.model(self.state.input)


def test_an_attribute_of_the_state_is_found_there():
    model = one()
    with pytest.raises(AttributeError) as caught:
        ForgetsState(model, torch.optim.SGD(model.parameters(), lr=0.1), None).fit([(INPUT, INPUT)])
    assert "expected self.state.model, got self.model. All about" in caught.value.__notes__[0]


def test_a_metric_of_scikit_learn_gets_classes():
    metrics = pytest.importorskip("sklearn.metrics")
    model = three()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def accuracy(output, target):
        return metrics.accuracy_score(target, output)

    with pytest.raises(ValueError, match="Classification metrics can't handle") as caught:
        Runner(model, optimizer, CE, [accuracy]).fit([(INPUT, LABELS)])
    (note,) = caught.value.__notes__
    assert note.endswith("lambda output, target: accuracy_score(target, output.argmax(1))")


def test_a_fused_optimizer_whose_layers_are_unfrozen_later_gets_the_line_to_type():
    class Unfreeze(Callback):
        def on_epoch_begin(self, state):
            state.model.weight.requires_grad = state.epoch > 0

    model = three()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    with pytest.raises(TypeError) as caught:
        Runner(model, optimizer, CE, callbacks=[Unfreeze()]).fit([(INPUT, LABELS)], epochs=2)
    assert caught.value.__notes__[0].endswith("unfrozen later. Create the optimizer with fused=False")


class AtTheEnd(Callback):
    def on_epoch_end(self, state):
        print(state.logs["val_loss"])


class TooEarly(Callback):
    def on_batch_end(self, state):
        print(state.logs["train/loss"])


class AnotherDict(Callback):
    def on_epoch_end(self, state):
        print({}["val_loss"])


@pytest.mark.parametrize(
    ("callback", "advice"),
    [
        (AtTheEnd(), "expected a name in state.logs, got 'val_loss'. There are: train/loss, lr, val/loss"),
        (TooEarly(), "got 'train/loss'. There are: none yet, since results are there from on_loader_end on"),
        (AnotherDict(), "fit: raised in epoch 1, by AnotherDict.on_epoch_end"),
    ],
)
def test_a_callback_that_looks_for_a_wrong_name_gets_the_names(callback, advice):
    model, batches = one(), [(INPUT, torch.zeros(8, 1))]
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), callbacks=[callback])
    with pytest.raises(KeyError) as caught:
        runner.fit(batches, val_loader=batches)
    assert caught.value.__notes__[0].endswith(advice)
