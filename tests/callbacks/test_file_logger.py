"""FileLogger: one row per epoch, as lines and as a table."""

import csv
import json

import pytest
from fit_callbacks import ConfusionMatrix, FileLogger, TensorBoard
from fit_core import Callback
from scene import Matrix, Watch, batches, make

# FileLogger


def test_a_row_an_epoch_as_lines_and_as_a_table(tmp_path):
    class Late(Callback):
        def on_epoch_end(self, state):
            state.logs["extra"] = 2.5

    lines, table = FileLogger(tmp_path / "a" / "log.jsonl"), FileLogger(tmp_path / "a" / "log.csv")
    history = make(lines, table, Late()).fit(batches(), epochs=3, val_loader=batches(), validate_every=2)
    assert [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()] == history
    with (tmp_path / "a" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{key: float(value) for key, value in row.items() if value} for row in rows] == history
    assert rows[0]["val/loss"] == ""
    assert rows[0]["extra"] == "2.5"


def test_a_row_is_there_when_the_next_epoch_begins(tmp_path):
    path = tmp_path / "log.jsonl"
    seen = Watch("on_batch_begin", lambda state: len(path.read_text().splitlines()) if path.exists() else 0)
    make(FileLogger(path), seen).fit(batches((4,)), epochs=3)
    assert seen.seen == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_the_file_of_an_earlier_run_is_set_aside(tmp_path, capsys):
    path = tmp_path / "log.csv"
    texts = []
    for lr in (0.1, 0.2, 0.3):
        make(FileLogger(path), lr=lr).fit(batches())
        texts.append(path.read_text())
    assert (tmp_path / "log-previous-1.csv").read_text() == texts[0]
    assert (tmp_path / "log-previous-2.csv").read_text() == texts[1]
    assert len(set(texts)) == 3
    assert "log.csv of an earlier run to log-previous-1.csv" in capsys.readouterr().out


def test_a_run_that_cannot_start_leaves_the_file_of_an_earlier_run(tmp_path):
    class Fail(Callback):
        def on_begin(self, state):
            raise RuntimeError("another run is writing to this folder")

    (tmp_path / "log.csv").write_text("earlier")
    for callbacks in ([Fail(), FileLogger(tmp_path / "log.csv")], [FileLogger(tmp_path / "log.csv"), Fail()]):
        with pytest.raises(RuntimeError, match="another run"):
            make(*callbacks).fit(batches())
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_other_endings_are_refused():
    with pytest.raises(ValueError, match=r"that ends in .jsonl or .csv, got 'log.txt'"):
        FileLogger("log.txt")


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    board = TensorBoard(tmp_path, every=1, histograms=True, graph=True)
    runner = make(board, ConfusionMatrix(board), FileLogger(tmp_path / "log.csv"), metrics=[Matrix()])
    runner.fit(batches(), val_loader=batches())
    assert list(tmp_path.iterdir()) == []
