"""Compare docs/protocol.md with the code: it lists every hook, every state field, and every part of a saved run."""

import dataclasses
import re
from pathlib import Path

import fit_core
import torch
from torch import nn

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def section(title):
    return re.search(rf"^## {title}\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)[1]


def test_it_names_everything_that_can_be_imported():
    named = set(re.findall(r"`(\w+)`", section("What is promised")))
    assert set(fit_core.__all__) <= named


def test_it_shows_the_hooks_in_order():
    drawn = re.search(r"^```text\n(.*?)^```", section("The hooks"), re.MULTILINE | re.DOTALL)[1]
    # An epoch has two on_checkpoint, one of them per batch.
    assert tuple(dict.fromkeys(re.findall(r"^ *(on_\w+)", drawn, re.MULTILINE))) == fit_core.HOOKS


def test_its_table_has_every_field_of_the_state():
    rows = re.findall(r"^\|.*\|$", section("The state"), re.MULTILINE)
    listed = re.findall(r"`(\w+)`", "\n".join(rows).replace("`Runner`", "").replace("`forward`", ""))
    fields = {field.name for field in dataclasses.fields(fit_core.RunnerState)}
    assert len(listed) == len(set(listed))
    # checkpoint does the work of state_dict and load_state_dict.
    assert set(listed) == fields - {"checkpoint"} | {"total_steps"}


def test_nothing_else_is_saved():
    """If this fails, bring the table in docs/protocol.md up to date too."""
    model = nn.Linear(1, 1)
    runner = fit_core.Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss())
    runner.fit([(torch.ones(4, 1), torch.ones(4, 1))])
    saved = runner.state.state_dict()
    counters = {"epoch", "global_step", "samples_seen", "logs", "history"}
    parts = {"model", "criterion", "optimizer", "grad_scaler", "callbacks"}
    assert saved.keys() == {"format", "settings", "ranks"} | counters | parts
    lengths = {"epochs", "batches per epoch", "batch_size", "accumulate_steps", "steps_per_epoch"}
    assert saved["settings"].keys() == {*lengths, "processes", "sharded", "dtype", "autocast", "optimizer", "given"}
    rank = {"random", "stream", "gradients", "window", "losses", "metrics", "has_outputs", "samples", "buffers"}
    assert saved["ranks"][0].keys() == rank
    for name in ("the optimizer", "gradient scaler", "the criterion", "random generators", "place in the training"):
        assert name in section("What is saved with a run")
