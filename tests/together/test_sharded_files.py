"""The folder of a sharded run: its files, damage to them, and the cost of writing them."""

import pickle
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path

import fit_callbacks.checkpoint.commit
import pytest
import sharded_crash
import torch
from fit_callbacks import CheckpointError, CheckpointSaver
from fit_callbacks.checkpoint import read
from fit_callbacks.checkpoint.__main__ import main
from fit_core import Callback
from processes import in_a_process, on_two_processes
from sharded import loaders, needs_cpu_shards, network, runner, weights
from whole import whole

pytestmark = [pytest.mark.timeout(240), needs_cpu_shards]


def shards_of(path):
    return path.parent / torch.load(path, weights_only=True)["shards"]["folder"]


class Values(Callback):
    """Logs given values, and notes the weights at the start of each epoch."""

    def __init__(self):
        self.started = []

    def on_epoch_begin(self, state):
        self.started.append(weights(state.model))

    def on_epoch_end(self, state):
        state.logs["value"] = [3.0, 1.0, 2.0][state.epoch]


def train(rank, folder, epochs=3, callback=None, seed=0, **options):
    run = runner(network(seed), callback or Values(), CheckpointSaver(folder, "value", "min", **options))
    train_loader, val_loader = loaders()
    run.fit(train_loader, epochs=epochs, val_loader=val_loader)
    return weights(run.state.model)


def full_disk(rank, folder, on_error):
    """Rank 1 cannot write its shards of the second epoch."""
    train(rank, folder, epochs=1)
    original = fit_callbacks.checkpoint.shard_files.checksum_of

    def fail(path):
        if rank == 1:
            raise OSError(28, "No space left on device")
        return original(path)

    fit_callbacks.checkpoint.shard_files.checksum_of = fail
    try:
        train(rank, folder, epochs=2, resume=True, on_error=on_error)
    except CheckpointError as error:
        return str(error)
    finally:
        fit_callbacks.checkpoint.shard_files.checksum_of = original
    return "trained"


def disks_of_their_own(rank, folder):
    """Each process has another disk under the same name, as on machines without a shared one."""
    try:
        train(rank, folder / f"disk of rank {rank}")
    except CheckpointError as error:
        return str(error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def ranks(folder):
    cases = {
        "train": partial(train, folder=folder / "run", keep=2),
        "twice": partial(train, folder=folder / "twice", epochs=1),
        "disks": partial(disks_of_their_own, folder=folder),
        "again": partial(train, folder=folder / "twice", epochs=1),
        **{on_error: partial(full_disk, folder=folder / on_error, on_error=on_error) for on_error in ("raise", "warn")},
    }
    return on_two_processes(cases, folder)


@pytest.fixture
def run(ranks, folder, tmp_path):
    """A copy of the folder of a run of three epochs, of which the second is the best."""
    return shutil.copytree(folder / "run", tmp_path / "run")


def test_the_folder_has_the_shards_of_its_files_and_no_others(run, ranks):
    files = {path.name for path in run.glob("*.pt")}
    assert files == {"last.pt", "before-last.pt", "best.pt", "epoch-0002.pt", "epoch-0003.pt"}
    assert {shards_of(path) for path in run.glob("*.pt")} == set(run.glob("shards-*"))
    assert len(list(run.glob("shards-*"))) == 2  # the second epoch and the third
    assert shards_of(run / "best.pt") == shards_of(run / "before-last.pt") == shards_of(run / "epoch-0002.pt")
    last, best = read(run / "last.pt"), read(run / "best.pt")
    assert (last["epoch"], best["epoch"], best["monitor"]["value"]) == (3, 2, 1.0)
    assert all(torch.equal(value, last["model"][name]) for name, value in ranks["train"][0].items())
    assert "shards" not in last
    assert len(last["ranks"]) == 2


def test_torchs_own_tool_reads_the_weights(run, tmp_path):
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(str(shards_of(run / "last.pt")), tmp_path / "weights.pt")
    whole = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert torch.equal(whole["model/0.weight"], read(run / "last.pt")["model"]["0.weight"])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-10])


DAMAGE = {
    "flipped": (flip, "the checksum of "),
    "cut off": (cut_off, " is not complete"),
    "gone": (Path.unlink, " is missing. It belongs to the checkpoint, so copy the folder with it"),
}


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp", "__1_0.distcp"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_found_and_the_checkpoint_before_is_used(run, kind, name):
    spoil, message = DAMAGE[kind]
    expected = read(run / "before-last.pt")
    spoil(shards_of(run / "last.pt") / name)
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be used: ") as caught:
        read(run / "last.pt")
    assert message in str(caught.value)
    assert name in str(caught.value)
    values = Values()
    with pytest.warns(UserWarning, match=r"last\.pt cannot be used.* Using .*before-last\.pt instead"):
        train(0, run, callback=values, seed=3, resume=True)
    assert all(torch.equal(value, values.started[0][key]) for key, value in expected["model"].items())


def test_all_damaged_is_an_error(run):
    for folder in run.glob("shards-*"):
        flip(folder / "__0_0.distcp")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used"):
        train(0, run, resume="auto")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_the_description_of_shards_is_not_run(run, tmp_path):
    path = run / "last.pt"
    content, bomb = torch.load(path, weights_only=True), pickle.dumps(Bomb(tmp_path / "exploded"))
    (shards_of(path) / ".metadata").write_bytes(bomb)
    content["shards"]["files"][".metadata"] = [
        len(bomb),
        fit_callbacks.checkpoint.shard_files.checksum_of(shards_of(path) / ".metadata"),
    ]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"contains more than tensors .*Path"):
        read(path)
    assert not (tmp_path / "exploded").exists()


def test_the_tool_lists_size_and_damage(run, capsys):
    assert main([str(run)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["last.pt"].endswith("whole")
    size = (run / "last.pt").stat().st_size + sum(path.stat().st_size for path in shards_of(run / "last.pt").iterdir())
    assert f"{size / 1e3:.1f} kB" in lines["last.pt"]
    flip(shards_of(run / "last.pt") / "__1_0.distcp")
    assert main([str(run)]) == 1
    assert "DAMAGED" in capsys.readouterr().out


def test_a_new_run_moves_the_shards_of_an_earlier_one(ranks, folder):
    aside = folder / "twice" / "previous-1"
    assert {path.name for path in aside.iterdir()} == {"last.pt", "best.pt", "shards-000001"}
    assert read(aside / "last.pt")["epoch"] == read(folder / "twice" / "last.pt")["epoch"] == 1


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_every_process_learns_that_a_shard_could_not_be_written(ranks, folder, on_error):
    first, second = ranks[on_error]
    if on_error == "raise":
        assert "No space left on device" in first
        assert "MB are free. The checkpoints before it are intact" in first
        assert second == first
    else:
        assert first == second == "trained"
    assert read(folder / on_error / "last.pt")["epoch"] == 1
    assert len(list((folder / on_error).glob("shards-*"))) == 1


def test_a_folder_that_not_all_machines_see_is_an_error(ranks, folder):
    for message in ranks["disks"]:
        assert (
            "expected the shards of all processes there, but 1 of 3 files are missing. Pass a folder that every"
            in message
        )
    assert not (folder / "disk of rank 0" / "last.pt").exists()


def test_a_file_of_the_users_own_keeps_its_shards(run):
    """A copy under another name refers to the same shards, which a later save may not remove."""
    (run / "mine.pt").hardlink_to(run / "best.pt")
    (run / "foreign.pt").write_text("not a checkpoint")
    for name in ("best.pt", "before-last.pt", "epoch-0002.pt"):
        (run / name).unlink()
    fit_callbacks.checkpoint.folder.clear_unused(run)
    assert read(run / "mine.pt")["epoch"] == 2
    (run / "mine.pt").unlink()
    flip(run / "last.pt")
    with suppress(CheckpointError):
        read(run / "last.pt")
    (run / "last.pt").write_bytes(b"")  # It cannot be read, so nothing is removed.
    fit_callbacks.checkpoint.folder.clear_unused(run)
    assert len(list(run.glob("shards-*"))) == 2


@whole
def test_rank_0_needs_less_memory_the_more_processes_there_are(tmp_path):
    """The state is 50 MB, which no process ever holds."""
    resumes, saves = zip(*in_a_process(sharded_crash.peaks, tmp_path).values(), strict=True)
    assert resumes[1] < resumes[0] < 40e6
    assert max(saves) < 1e6  # What is on the CPU already is written from where it is.
