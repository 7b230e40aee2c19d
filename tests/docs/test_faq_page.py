"""The messages of docs/faq.md are in the sources, and what common mistakes raise is on the page."""

import ast
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from fit_callbacks import CheckpointSaver, EarlyStopping, LRScheduler
from fit_core import Runner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faq.md").read_text()
MESSAGES = [" ".join(text.split()) for text in re.findall(r"^```text\n(.*?)\n```", PAGE, re.MULTILINE | re.DOTALL)]


def fixed_parts():
    """Yield each string of the sources. Of one with values in it, yield the parts between them."""
    for path in ROOT.glob("packages/*/src/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


SOURCES = "\0".join(fixed_parts())


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_in_the_sources(message):
    for part in (part.strip(" .") for part in message.split("...")):
        assert part in SOURCES, f"docs/faq.md has a message that nothing raises. Reword or drop it: {part}"


def test_there_are_enough():
    assert len(MESSAGES) > 40


INPUT, TARGET, LABELS = torch.randn(4, 2), torch.randn(4, 1), torch.tensor([0, 1, 2, 3])
BATCHES = [(INPUT, TARGET)]
DATASET = TensorDataset(INPUT, TARGET)


def train(loader=BATCHES, criterion=None, outputs=1, fit=None, optimizer=None, **options):
    model = nn.Linear(2, outputs)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    Runner(model, optimizer, criterion or nn.MSELoss(), **options).fit(loader, **(fit or {}))


def other_optimizer():
    return torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)


def other_scheduler():
    return torch.optim.lr_scheduler.StepLR(other_optimizer(), 1)


CROSS_ENTROPY = partial(train, criterion=nn.CrossEntropyLoss(), outputs=3)
MISTAKES = {
    "a dataset": partial(train, DATASET),
    "a dict": partial(train, [{"a": INPUT}]),
    "no full batch": partial(train, DataLoader(DATASET, batch_size=8, drop_last=True)),
    "an iterator": lambda: train(iter(BATCHES), fit={"epochs": 3}),
    "a broadcast": partial(train, [(INPUT, TARGET[:, 0])]),
    "no reduction": partial(train, criterion=nn.MSELoss(reduction="none")),
    "a sum": partial(train, criterion=nn.MSELoss(reduction="sum")),
    "no graph": partial(train, criterion=lambda output, target: (output - target).mean().detach()),
    "labels out of range": partial(CROSS_ENTROPY, [(INPUT, LABELS)]),
    "floating labels": partial(CROSS_ENTROPY, [(INPUT, LABELS.float() / 2)]),
    "float64": partial(train, [(INPUT.double(), TARGET)]),
    "another optimizer": lambda: train(optimizer=other_optimizer()),
    "Keras' monitor": lambda: train(callbacks=[EarlyStopping("val_loss")], fit={"val_loader": BATCHES}),
    "no validation": lambda: train(callbacks=[EarlyStopping("val/loss")]),
    "an argument of Keras": partial(train, fit={"validation_data": BATCHES}),
    "a metric without a mean": partial(train, metrics=[lambda output, target: (output - target).abs()]),
    "a bare scheduler": lambda: train(callbacks=[other_scheduler()]),
    "another scheduler": lambda: train(callbacks=[LRScheduler(other_scheduler())]),
    "no checkpoint": lambda: train(callbacks=[CheckpointSaver("empty", resume=True)]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_a_mistake_raises_is_on_the_page(mistake, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError, RuntimeError, IndexError, OSError)) as caught:
        MISTAKES[mistake]()
    # Python 3.10 does not have notes, and they are logged.
    text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ()), caplog.text])
    general = "raised in ... batch ..., on ..."
    patterns = [".*".join(map(re.escape, message.split("..."))) for message in MESSAGES if message != general]
    assert any(re.search(pattern, text, re.DOTALL) for pattern in patterns), text
