"""Arguments of other libraries are answered with the line to type here."""

import inspect
from pathlib import Path

import pytest
from fit_callbacks import CheckpointSaver, EarlyStopping, FileLogger, ModelEma, TensorBoard
from scene import batches, make
from torch import nn


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: EarlyStopping(restore_best_weights=True),
            r"got restore_best_weights\. CheckpointSaver keeps the b",
        ),
        (lambda: EarlyStopping(5), r"got 5\. Write EarlyStopping\(patience=5\)"),
        (lambda: CheckpointSaver("runs", save_best_only=True), r"got save_best_only\. best.pt is always kept"),
        (
            lambda: CheckpointSaver(filepath="runs"),
            r"got filepath\. Pass the folder: CheckpointSaver\(save_dir\)",
        ),
        (
            lambda: CheckpointSaver("runs", patience=3),
            r"got patience\. To stop when nothing improves, add EarlyStopping\('val/loss', patience=3\)",
        ),
        (lambda: CheckpointSaver("runs", filename="{epoch}"), r"got filename\. Files have fixed names: last.pt"),
        (lambda: CheckpointSaver("runs", every_n_epochs=1), r"got every_n_epochs\. It saves after each epoch"),
        (lambda: CheckpointSaver("runs", resume=None), r'resume to be True, False, "auto" or a path, got None'),
        (lambda: CheckpointSaver("runs", resume=3), r'resume to be True, False, "auto" or a path, got 3'),
        (lambda: ModelEma(nn.Linear(1, 1)), r"got a model\. Pass only the decay: ModelEma\(0.999\)"),
    ],
)
def test_an_argument_of_another_library(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("name", ["best.pt", "model.keras", "{epoch}.ckpt"])
def test_a_file_in_place_of_a_folder(name, tmp_path):
    with pytest.raises(ValueError, match=r"save_dir to be a folder, got .*\. Write CheckpointSaver\('.*runs'\)$"):
        CheckpointSaver(tmp_path / "runs" / name)
    (tmp_path / "runs.pt").mkdir()
    CheckpointSaver(tmp_path / "runs.pt")


def test_a_file_without_a_format(tmp_path):
    with pytest.raises(ValueError, match=r"got '.*runs'\. Write FileLogger\('.*log.csv'\)$"):
        FileLogger(tmp_path / "runs")


KINDS = [CheckpointSaver, TensorBoard, FileLogger]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", [None, b"runs", 3])
def test_a_path_that_is_not_one(kind, path):
    with pytest.raises(TypeError, match=r'to be a path such as "runs/a", got'):
        kind(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", 'to be a path such as "runs/a", got an empty one'),
        ("s3://bucket/a.csv", "to be a folder of this machine, got 's3://bucket/a.csv'. Write to a local folder"),
    ],
)
def test_a_path_that_is_not_on_this_machine(kind, path, message):
    with pytest.raises(ValueError, match=message):
        kind(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_below_a_file_or_too_long(kind, tmp_path):
    (tmp_path / "notes").write_text("a file")
    with pytest.raises(ValueError, match=f"'{tmp_path}/notes' is a file. Choose another path"):
        kind(tmp_path / "notes" / "a.csv")
    with pytest.raises(ValueError, match="got a part that is too long"):
        kind(tmp_path / f"{'x' * 300}.csv")


@pytest.mark.parametrize("kind", [CheckpointSaver, TensorBoard])
def test_a_folder_that_is_a_file(kind, tmp_path):
    (tmp_path / "notes").write_text("a file")
    with pytest.raises(ValueError, match=f"to be a folder, got the file '{tmp_path}/notes'"):
        kind(tmp_path / "notes")


def test_the_tilde_is_the_home_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CheckpointSaver("~/runs").save_dir == tmp_path / "runs"


def test_the_signature_stays_that_of_the_class():
    assert list(inspect.signature(EarlyStopping).parameters) == ["monitor", "mode", "patience", "min_delta"]


def test_the_current_folder_and_the_root_are_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CheckpointSaver(".").save_dir == Path(".")
    assert TensorBoard("/").log_dir == "/"
    make(CheckpointSaver(".")).fit(batches())
    assert (tmp_path / "last.pt").exists()
