"""Callbacks that only watch never end a run: a full disk, a folder that is gone, a figure that cannot be drawn."""

import csv
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from fit_callbacks import FileLogger, Profiler, TensorBoard
from fit_core import Callback
from processes import run_program
from programs import environment
from read_back import close, curves, events
from scene import Snapshots, batches, load, make
from torch import nn

FULL = """
import json, resource, sys, warnings
from pathlib import Path
from scene import accuracy, batches, make
from fit_callbacks import FileLogger, TensorBoard
from fit_core import Callback

class Full(Callback):
    '''No file may grow beyond some bytes in the second and third epoch.'''

    def on_epoch_end(self, state):
        limit = 60 if state.epoch in {epochs} else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

folder = Path(sys.argv[1])
loggers = [TensorBoard(folder, every=2), FileLogger(folder / "log.csv"), FileLogger(folder / "log.jsonl")]
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    history = make(Full(), *loggers, metrics=[accuracy]).fit(batches(), epochs=5, val_loader=batches(seed=1))
print(json.dumps([list(history), [str(warning.message) for warning in seen]]))
"""


def run(folder, epochs):
    script = folder.with_suffix(".py")
    script.write_text(FULL.format(epochs=epochs))
    result = run_program(script, folder)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.skipif(sys.platform == "win32", reason="sets a limit of Unix")
def test_a_full_disk_under_the_logs_only_leaves_no_gap(tmp_path):
    gold, nothing = run(tmp_path / "gold", epochs=())
    assert nothing == []
    history, said = run(tmp_path / "full", epochs=(1, 2))
    assert history == gold
    assert curves(tmp_path / "full") == curves(tmp_path / "gold")
    for name in ("log.csv", "log.jsonl"):
        assert (tmp_path / "full" / name).read_text() == (tmp_path / "gold" / name).read_text()
    for start, then in (
        (f"TensorBoard could not write to {tmp_path}", "a later epoch writes the missing points"),
        (f"FileLogger could not write {tmp_path}/full/log.csv", "a later epoch writes the missing rows"),
        (f"FileLogger could not write {tmp_path}/full/log.jsonl", "a later epoch writes the missing rows"),
    ):
        (warning,) = [text for text in said if text.startswith(start + ("/full" if "Board" in start else ""))]
        assert "File too large" in warning
        assert warning.endswith(f"Training continues, and {then}")
    assert len(said) == 3


class At(Callback):
    """Does something at the start of an epoch."""

    def __init__(self, epoch, action):
        self.epoch, self.action = epoch, action

    def on_epoch_begin(self, state):
        if state.epoch == self.epoch:
            self.action()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore:TensorBoard could not write")
def test_a_folder_that_is_deleted_is_made_again(tmp_path):
    folder, file = tmp_path / "logs", tmp_path / "table" / "log.csv"

    def delete():
        for path in (folder, file.parent):
            path.rename(path.with_suffix(".gone"))

    history = make(At(2, delete), TensorBoard(folder, every=None), FileLogger(file)).fit(batches(), epochs=5)
    with file.open() as rows:
        assert [int(row["epoch"]) for row in csv.DictReader(rows)] == [1, 2, 3, 4, 5]
    points = [point for part in ("logs.gone", "logs") for point in curves(tmp_path / part)["train/loss"]]
    assert [point for point in points if point[0] > 10][-3:] == [
        (5 * row["epoch"], close(row["train/loss"])) for row in history[2:]
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_could_not_be_written_is_in_the_checkpoint(tmp_path, monkeypatch):
    from tensorboard.summary.writer import record_writer

    gold = tmp_path / "gold"
    make(TensorBoard(gold, every=1)).fit(batches(), epochs=3)
    snapshots, folder = Snapshots(), tmp_path / "run"

    def fail(self, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        deny = At(1, lambda: patch.setattr(record_writer.RecordWriter, "write", fail))
        runner = make(deny, TensorBoard(folder, every=1), snapshots)
        with pytest.warns(UserWarning, match="No space left on device"):
            runner.fit(batches(), epochs=2)
    runner = make(TensorBoard(folder, every=1))
    runner.state.load_state_dict(load(snapshots.saved[8]))
    with pytest.warns(UserWarning, match="epochs 2 -> 3"):
        runner.fit(batches(), epochs=3)
    assert curves(folder) == curves(gold)


class Dict(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.empty = nn.Linear(6, 3), nn.Parameter(torch.empty(0))

    def forward(self, x):
        return {"out": self.linear(x), "sizes": [len(x)]}


def test_what_cannot_be_drawn_is_named_once(tmp_path):
    board = TensorBoard(tmp_path, graph=True, histograms=True, images=2)
    runner = make(board, model=Dict())
    runner.state.criterion = lambda output, target: nn.functional.cross_entropy(output["out"], target)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        history = runner.fit(batches(), epochs=2, val_loader=batches())
    said = [str(warning.message) for warning in seen if str(warning.message).startswith("TensorBoard")]
    assert len(said) == 3
    assert said[0].startswith("TensorBoard could not draw the graph: ")
    assert said[1].startswith("TensorBoard could not show the inputs: ValueError('expected inputs (N, 1, H, W)")
    assert said[2].startswith("TensorBoard could not draw a histogram: ")
    assert curves(tmp_path)["val/loss"] == [(5 * row["epoch"], close(row["val/loss"])) for row in history]
    assert len(events(tmp_path).Histograms("linear/weight")) == 2


def test_a_trace_that_cannot_be_written_does_not_end_the_run(tmp_path):
    folder = tmp_path / "traces"
    folder.mkdir()
    profiler = Profiler(folder, wait=0, warmup=0, active=2)
    folder.rmdir()
    folder.write_text("in the way")
    with pytest.warns(UserWarning, match=f"Profiler could not write a trace to {folder}"):
        assert len(make(profiler).fit(batches())) == 1


PRINT = """
import sys
from scene import batches, make
from fit_callbacks import ConsoleLogger
print(len(make(ConsoleLogger()).fit(batches(), epochs=2)), file=sys.stderr)
sys.stderr.flush()
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_under_stdout_does_not_end_the_run():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", PRINT]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    assert result.stderr.splitlines()[0] == "2"


class Log(Callback):
    def on_epoch_end(self, state):
        state.logs |= {"np": np.float32(0.5), "count": np.int64(3), "torch": torch.tensor(0.25), "text": "a"}


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path):
    make(Log(), FileLogger(tmp_path / "log.jsonl"), FileLogger(tmp_path / "log.csv"), TensorBoard(tmp_path)).fit(
        batches()
    )
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert [row[name] for name in ("np", "count", "torch", "text")] == [0.5, 3, 0.25, "a"]
    with (tmp_path / "log.csv").open() as file:
        row = next(csv.DictReader(file))
    assert [row[name] for name in ("np", "count", "torch", "text")] == ["0.5", "3", "0.25", "a"]
    read = curves(tmp_path)
    assert [read[name][0][1] for name in ("np", "count", "torch")] == [0.5, 3, 0.25]
    assert "text" not in read


@pytest.mark.parametrize(("validate_every", "names"), [(2, (b"train/loss", b"val/loss")), (5, (b"train/loss",))])
def test_hyperparameters_wait_for_the_first_validation(tmp_path, validate_every, names):
    snapshots = Snapshots()
    make(TensorBoard(tmp_path), snapshots).fit(
        batches(), epochs=3, val_loader=batches(seed=1), validate_every=validate_every
    )
    content = events(tmp_path).summary_metadata["_hparams_/experiment"].plugin_data.content
    assert all((name in content) == (name in names) for name in (b"train/loss", b"val/loss"))
    folder = tmp_path / "resumed"  # from the first epoch, which was not validated
    runner = make(TensorBoard(folder))
    runner.state.load_state_dict(load(snapshots.saved[5]))
    runner.fit(batches(), epochs=3, val_loader=batches(seed=1), validate_every=validate_every)
    assert all(name in events(folder).summary_metadata["_hparams_/experiment"].plugin_data.content for name in names)
