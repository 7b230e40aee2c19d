"""The loggers of docs/loggers.md send what a run gives, in order, and go on in the same run when it is resumed."""

import re
import sys
from pathlib import Path

import fakes
import pytest
import torch
from fit_core import Callback, Runner
from torch import nn

PAGE = Path(__file__).parents[2] / "docs" / "loggers.md"


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """The names that the page defines, and the clients that its loggers speak with."""
    monkeypatch.chdir(tmp_path)
    clients = {name: fakes.Client() for name in ("wandb", "mlflow")}
    for name, client in clients.items():
        monkeypatch.setitem(sys.modules, name, client)
    names = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    for client in clients.values():
        client.calls.clear()
    return names, clients


def runner(*callbacks):
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    return Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), callbacks=callbacks)


BATCHES = [(torch.ones(2, 2), torch.zeros(2, 1))] * 100


class Keep(Callback):
    def on_checkpoint(self, state):
        if not hasattr(self, "saved") and state.epoch == 1:
            self.saved = {**state.state_dict(), "callbacks": dict(state.state_dict()["callbacks"])}


def test_the_wandb_logger(shown):
    names, clients = shown
    client, keep = clients["wandb"], Keep()
    history = runner(names["WandbLogger"](project="digits"), keep).fit(BATCHES, epochs=2, val_loader=BATCHES[:1])
    assert client.named("init") == [((), {"id": None, "resume": "allow", "project": "digits"})]
    logged = client.named("log")
    assert [call["step"] for _, call in logged] == [50, 100, 100, 150, 200, 200]
    assert [args[0] for args, _ in logged if "val/loss" in args[0]] == [
        {name: value for name, value in row.items() if name != "epoch"} for row in history
    ]
    assert client.named("finish") == [((), {"exit_code": 0})]
    client.calls.clear()
    resumed = runner(names["WandbLogger"](project="digits"), Keep())
    resumed.state.load_state_dict(keep.saved)
    resumed.fit(BATCHES, epochs=2)
    assert client.named("init") == [((), {"id": "run-1", "resume": "allow", "project": "digits"})]


def test_the_mlflow_logger(shown):
    names, clients = shown
    client = clients["mlflow"]
    history = runner(names["MlflowLogger"]({"width": 64})).fit(BATCHES, epochs=2)
    assert client.named("log_params") == [(({"width": 64},), {})]
    assert [(args[0]["train_loss"], call["step"]) for args, call in client.named("log_metrics")] == [
        (row["train/loss"], 100 * row["epoch"]) for row in history
    ]
    assert client.named("end_run") == [(("FINISHED",), {})]
