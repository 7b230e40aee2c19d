"""The recipes of docs/loggers.md, with stand-ins for the clients. test_trackers.py tries the real ones."""

import io
import re
import sys
import warnings
from pathlib import Path

import fakes
import pytest
import torch
from fit_callbacks import Report
from fit_core import Callback, Runner
from torch import nn

PAGE = Path(__file__).parents[2] / "docs" / "loggers.md"
BATCHES = [(torch.ones(2, 2), torch.zeros(2, 1))] * 60
RECIPES = {
    "wandb": lambda page: page["wandb_report"](project="digits"),
    "mlflow": lambda page: page["mlflow_report"]("digits"),
    "comet_ml": lambda page: page["comet_report"](project_name="digits"),
    "aim": lambda page: page["aim_report"](experiment="digits"),
}


@pytest.fixture(params=RECIPES)
def recipe(request, tmp_path, monkeypatch):
    """A function that makes the recipe's Report, and the client that it speaks with."""
    monkeypatch.chdir(tmp_path)
    clients = fakes.clients()
    for name, client in clients.items():
        monkeypatch.setitem(sys.modules, name, client)
    page = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), page)
    for client in clients.values():
        client.runs.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Report:")
        yield lambda: RECIPES[request.param](page), clients[request.param]


def accuracy(output, target):
    return (output > target).float().mean()


accuracy.name = "Acc@1"


def runner(*callbacks):
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    return Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), [accuracy], callbacks)


def expected():
    """Return the calls of a log function in a run that is not interrupted."""
    points = []
    runner(Report(lambda values, step: points.append((step, values)))).fit(BATCHES, epochs=2, val_loader=BATCHES[:1])
    return points


def plain(points):
    return [(step, {name.replace("_at_", "@"): value for name, value in values.items()}) for step, values in points]


class Stop(Callback):
    """Saves after a step, and raises after another."""

    def __init__(self, save, stop, error):
        self.save, self.stop, self.error = save, stop, error

    def on_checkpoint(self, state):
        if state.global_step == self.save:
            self.saved = io.BytesIO()
            torch.save(state.state_dict(), self.saved)
        if state.global_step == self.stop:
            raise self.error


def test_each_value_arrives(recipe):
    make, client = recipe
    runner(make()).fit(BATCHES, epochs=2, val_loader=BATCHES[:1])
    (run,) = client.runs.values()
    assert plain(run.points) == expected()
    assert [step for step, _ in run.points] == [50, 60, 100, 120]
    assert run.params["model"] == "Linear"
    assert run.statuses == ["finished"]


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "interrupted"), (RuntimeError, "failed")])
@pytest.mark.parametrize("stop", [70, 110])
def test_a_resumed_run_continues_in_the_same_run(recipe, error, status, stop):
    make, client = recipe
    kill = Stop(70, stop, error)
    with pytest.raises(error):
        runner(make(), kill).fit(BATCHES, epochs=2, val_loader=BATCHES[:1])
    resumed = runner(make())
    resumed.state.load_state_dict(torch.load(io.BytesIO(kill.saved.getvalue()), weights_only=True))
    resumed.fit(BATCHES, epochs=2, val_loader=BATCHES[:1])
    (run,) = client.runs.values()
    assert run.statuses == [status, "finished"]
    points = [point for number, point in enumerate(plain(run.points)) if point[1] and point not in run.points[:number]]
    assert points == expected()
    if client.__name__ == "mlflow":  # the others drop what they have
        assert [step for step, values in run.points if values] == [50, 60, 100, 120]


def test_a_second_fit_is_a_second_run(recipe):
    make, client = recipe
    one = runner(make())
    for _ in range(2):
        one.fit(BATCHES, epochs=1)
    first, second = client.runs.values()
    assert [step for step, _ in first.points] == [step for step, _ in second.points] == [50, 60]
    assert (first.statuses, second.statuses) == (["finished"], ["finished"])
    assert first.params == second.params != {}
