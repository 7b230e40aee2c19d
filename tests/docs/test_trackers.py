"""The recipes of docs/loggers.md with the real clients, offline: `hatch run trackers:test`.

Each run is a process of its own. The results are read back from the files that the client has written.
"""

import importlib.util
import json
import math
import os
import signal
import sqlite3
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "loggers.md"
PROGRAM = '''
import os, re, signal, sys, json, torch
from pathlib import Path
from fit_callbacks import CheckpointSaver, Report
from fit_core import Callback, Runner

page, name, stop, how, fits = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
blocks = re.findall(r"^```python\\n(.*?)^```", Path(page).read_text(), re.MULTILINE | re.DOTALL)
scope = {"Report": Report}
if name != "gold":
    (block,) = [block for block in blocks if f"def {name}(" in block]
    exec(("import mlflow\\n" if "mlflow" in block else "") + block, scope)
reports = {
    "gold": lambda: Report(lambda values, step: points.append((step, values))),
    "wandb_report": lambda: scope["wandb_report"](project="digits", settings={"silent": True}),
    "mlflow_report": lambda: scope["mlflow_report"]("digits"),
    "comet_report": lambda: scope["comet_report"](project_name="digits", online=False),
    "aim_report": lambda: scope["aim_report"](experiment="digits"),
}
points = []


class Stop(Callback):
    """The signal comes in the middle of an epoch."""

    def on_batch_end(self, state):
        if state.is_train and state.global_step == stop:
            if how == "RuntimeError":
                raise RuntimeError
            os.kill(os.getpid(), getattr(signal, how))


def accuracy(output, target):
    return (output > target).float().mean()


accuracy.name = "Acc@1"
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 1), torch.nn.Dropout(0.2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
generator = torch.Generator().manual_seed(0)
batches = [(torch.randn(4, 8, generator=generator), torch.randn(4, 1, generator=generator)) for _ in range(60)]
callbacks = [reports[name](), Stop()]
if fits == 1:
    callbacks.append(CheckpointSaver("checkpoints", resume="auto"))
runner = Runner(model, optimizer, torch.nn.MSELoss(), [accuracy], callbacks)
for _ in range(fits):
    runner.fit(batches, epochs=3, val_loader=batches[:5])
if name == "gold":
    Path("gold.json").write_text(json.dumps(points))
'''


def run(folder, name, stop=0, how="", fits=1):
    """Returns the exit status of a training program."""
    env = {
        **os.environ,
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "COMET_OFFLINE_DIRECTORY": str(folder / "comet"),
        "COMET_AUTO_LOG_CODE": "0",
        "COMET_AUTO_LOG_ENV_DETAILS": "0",
        "PYTHONWARNINGS": "error:Report:UserWarning",
    }
    arguments = [sys.executable, "-c", PROGRAM, str(PAGE), name, str(stop), how, str(fits)]
    done = subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 or how, done.stderr[-3000:]
    return done.returncode


# What a client has written: for each run, in order, its points {step: values} (each once), parameters and statuses.


def read_wandb(folder):
    from wandb.proto import wandb_internal_pb2 as messages

    def records(path):
        """The records of a LevelDB log behind a header of 7 bytes: blocks of 32 kB, in them parts of records."""
        data, at, record = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            left = 32768 - at % 32768
            length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            if left < 7 or (length, kind) == (0, 0):
                at += left
                continue
            record, at = record + data[at + 7 : at + 7 + length], at + 7 + length
            if kind in (1, 4):  # a whole record, or the last part
                message = messages.Record()
                message.ParseFromString(record)
                yield message
                record = b""

    runs = {}
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        preempting = False
        for record in records(path):
            if record.HasField("run"):
                points, params, statuses = runs.setdefault(record.run.run_id, ([], {}, []))
            elif record.HasField("config"):
                params.update({item.key: json.loads(item.value_json) for item in record.config.update})
            elif record.HasField("preempting"):
                preempting = True
            elif record.HasField("exit"):
                code = record.exit.exit_code
                statuses.append("finished" if not code else "interrupted" if preempting else "failed")
            elif record.HasField("history"):
                items = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
                points.append((items["_step"], {k: v for k, v in items.items() if k[0] != "_"}))
    return list(runs.values())


def read_mlflow(folder):
    runs = []
    with sqlite3.connect(folder / "mlflow.db") as database:
        for id, status in database.execute("SELECT run_uuid, status FROM runs ORDER BY start_time").fetchall():
            query = "SELECT step, key, value FROM metrics WHERE run_uuid = ? ORDER BY step, timestamp"
            points = one_by_one(
                (step, key.replace("_at_", "@"), value) for step, key, value in database.execute(query, (id,))
            )
            params = dict(database.execute("SELECT key, value FROM params WHERE run_uuid = ?", (id,)))
            names = {"FINISHED": "finished", "KILLED": "interrupted", "FAILED": "failed", "RUNNING": "running"}
            runs.append((points, params, [names[status]]))
    return runs


def read_comet(folder):
    runs = {}
    for path in sorted(folder.glob("comet/*.zip"), key=lambda path: path.stat().st_mtime_ns):
        with zipfile.ZipFile(path) as archive:
            key = json.loads(archive.read("experiment.json"))["offline_id"]
            messages = [json.loads(line) for line in archive.read("messages.json").splitlines()]
        points, params, statuses = runs.setdefault(key, ([], {}, []))
        metrics = [message["payload"]["metric"] for message in messages if message["type"] == "metric_msg"]
        points += one_by_one(
            (row["step"], row["metricName"], row["metricValue"])
            for row in metrics
            if row["metricName"] != "process duration" and not row["metricName"].startswith("sys.")
        )
        for message in messages:
            payload = message["payload"]
            if message["type"] == "parameter_msg" and payload["param"]["source"] == "manual":
                params[payload["param"]["paramName"]] = payload["param"]["paramValue"]
            if message["type"] == "log_other" and payload["key"] == "status":
                statuses.append(payload["value"])
    return list(runs.values())


def read_aim(folder):
    import aim

    runs = []
    for id in aim.Repo(str(folder)).list_all_runs():
        run = aim.Run(id, repo=str(folder), system_tracking_interval=None, capture_terminal_logs=False)
        values = []
        for metric in run.metrics():
            if metric.name.startswith("__system__"):
                continue
            table = metric.dataframe()
            values += zip(table["step"], [metric.name] * len(table), table["value"], strict=True)
        runs.append((one_by_one(sorted(values)), run["hparams"], [run.get("status", "running")], run.creation_time))
        run.close()
    return [run[:3] for run in sorted(runs, key=lambda run: run[3])]


def one_by_one(values):
    """Points, in order of their steps, of single values. No value may come twice."""
    points = {}
    for step, name, value in values:
        assert name not in points.setdefault(step, {}), (step, name)
        points[step][name] = value
    return list(points.items())


READERS = {
    "wandb": ("wandb_report", read_wandb),
    "mlflow": ("mlflow_report", read_mlflow),
    "comet_ml": ("comet_report", read_comet),
    "aim": ("aim_report", read_aim),
}
INSTALLED = [name for name in READERS if importlib.util.find_spec(name)]
KEEPS_ALL_STATUSES = ("wandb", "comet_ml")
each_client = pytest.mark.parametrize("client", INSTALLED)
pytestmark = [pytest.mark.timeout(600)]
if not INSTALLED:
    pytest.skip("hatch run trackers:test installs the clients", allow_module_level=True)


@pytest.fixture(scope="module")
def gold(tmp_path_factory):
    """Return the calls of a log function in a run that is not interrupted."""
    folder = tmp_path_factory.mktemp("gold")
    run(folder, "gold")
    points = [(step, values) for step, values in json.loads((folder / "gold.json").read_text())]
    assert [step for step, _ in points] == [50, 60, 100, 120, 150, 180]
    return points


def same(points, expected):
    assert [(step, sorted(values)) for step, values in points] == [(step, sorted(values)) for step, values in expected]
    for (_, values), (_, wanted) in zip(points, expected, strict=True):
        assert all(math.isclose(values[name], wanted[name], rel_tol=1e-9) for name in wanted)


@each_client
def test_an_interrupted_run_continues_in_the_same_run(client, gold, tmp_path):
    name, read = READERS[client]
    assert run(tmp_path, name, 70, "SIGINT") == -signal.SIGINT
    ((points, params, statuses),) = read(tmp_path)
    same(points, gold[:2])
    assert statuses == ["interrupted"]
    assert (params["model"], float(params["lr"]), int(params["epochs"])) == ("Sequential", 0.1, 3)
    run(tmp_path, name)
    ((points, resumed_params, statuses),) = read(tmp_path)
    same(points, gold)
    assert resumed_params == params
    assert statuses == ["interrupted", "finished"][client not in KEEPS_ALL_STATUSES :]
    run(tmp_path, name)  # complete: there is nothing to report
    assert len(read(tmp_path)) == 1
    same(read(tmp_path)[0][0], gold)


@each_client
def test_a_run_that_fails_is_reported_as_such(client, gold, tmp_path):
    name, read = READERS[client]
    assert run(tmp_path, name, 70, "RuntimeError") == 1
    ((points, _, statuses),) = read(tmp_path)
    same(points, gold[:2])
    assert statuses == ["failed"]


@each_client
def test_a_second_fit_is_a_second_run(client, gold, tmp_path):
    name, read = READERS[client]
    run(tmp_path, name, fits=2)
    (first, first_params, one), (second, second_params, two) = read(tmp_path)
    same(first, gold)
    assert [step for step, _ in second] == [step for step, _ in first]
    assert second != first  # it trains on
    assert first_params == second_params
    assert one == two == ["finished"]


# The offline files of wandb and Comet lose what the process had not written yet.
@pytest.mark.parametrize("client", [name for name in INSTALLED if name in ("mlflow", "aim")])
def test_a_killed_run_has_no_step_twice_and_none_missing(client, gold, tmp_path):
    name, read = READERS[client]
    assert run(tmp_path, name, 110, "SIGKILL") == -signal.SIGKILL  # the checkpoint is from step 60
    ((points, _, statuses),) = read(tmp_path)
    same(points, gold[:3])
    assert statuses == ["running"]
    run(tmp_path, name)
    ((points, _, statuses),) = read(tmp_path)
    same(points, gold)
    assert statuses == ["finished"]
