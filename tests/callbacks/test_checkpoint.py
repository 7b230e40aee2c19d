"""Checkpoints: which files there are, what they hold, and what a run does that is resumed from them."""

import math
import os
import pickle
import random
import subprocess
import sys
import threading
import warnings
import zipfile
from pathlib import Path

import fit_callbacks.checkpoint.saver
import numpy
import pytest
import torch
from fit_callbacks import CheckpointError, CheckpointSaver, EarlyStopping, FileLogger, LRScheduler, ModelEma
from fit_callbacks.checkpoint import read
from fit_core import Callback
from scene import Snapshots, Watch, accuracy, batches, flat, make, network
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset


class Logs(Callback):
    """Puts given values into the logs, an epoch each."""

    def __init__(self, *values):
        self.values = values

    def on_epoch_end(self, state):
        state.logs["value"] = self.values[state.epoch]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def whole(state):
    return flat({key: value for key, value in state.state_dict().items() if key != "settings"})


def flip(path, bit=0):
    """Flip one bit in the middle of the largest tensor."""
    with zipfile.ZipFile(path) as records:
        tensors = [record for record in records.infolist() if "/data/" in record.filename]
        largest = max(tensors, key=lambda record: record.file_size)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as records:
        data = records.read(largest)
    at = content.index(data) + len(data) // 2
    content[at] ^= 1 << bit
    path.write_bytes(content)


# Files


def test_the_files_of_a_run(tmp_path):
    runner = make(CheckpointSaver(tmp_path), ModelEma(0.9))
    runner.fit(batches(), epochs=3, val_loader=batches(seed=1))
    assert names(tmp_path) == ["before-last.pt", "best.pt", "last.pt"]
    best, last, before = (read(tmp_path / name) for name in ("best.pt", "last.pt", "before-last.pt"))
    losses = [row["val/loss"] for row in runner.state.history]
    assert (last["epoch"], before["epoch"], best["epoch"]) == (3, 2, losses.index(min(losses)) + 1)
    assert best["monitor"] == {"name": "val/loss", "value": min(losses), "weights": "callbacks.ModelEma.model"}
    bare = network()
    bare.load_state_dict(torch.load(tmp_path / "last.pt", weights_only=True)["model"])
    assert flat(bare.state_dict()) == flat(runner.state.model.state_dict())
    assert last["callbacks"]["ModelEma"]["model"].keys() == last["model"].keys()


@pytest.mark.parametrize("first", [True, False])
def test_with_an_average_best_is_the_epoch_in_which_the_average_was(tmp_path, first):
    saver, ema = CheckpointSaver(tmp_path, "val/loss"), ModelEma(0.7)
    history = make(*((saver, ema) if first else (ema, saver))).fit(batches(), epochs=6, val_loader=batches(seed=1))
    best = read(tmp_path / "best.pt")
    average = network(seed=9)
    average.load_state_dict(best["callbacks"]["ModelEma"]["model"])
    assert make(model=average).evaluate(batches(seed=1))["val/loss"] == min(row["val/loss"] for row in history)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_are_kept_by_name(tmp_path, mode):
    values = [5.0, 3.0, float("nan"), 4.0, 3.0, 1.0, float("inf"), 2.0]
    sign = 1 if mode == "min" else -1
    kept = []

    class Look(Callback):
        def on_epoch_begin(self, state):
            kept.append([name for name in names(tmp_path) if name.startswith("epoch")] if state.epoch else [])

    saver = CheckpointSaver(tmp_path, "value", mode, keep=3)
    make(Logs(*(sign * value for value in values)), saver, Look()).fit(batches((4,)), epochs=8)
    one, two, four, five = ([f"epoch-000{n}.pt" for n in part] for part in ((1,), (1, 2), (1, 2, 4), (2, 4, 5)))
    assert kept == [[], one, two, two, four, five, ["epoch-0002.pt", "epoch-0005.pt", "epoch-0006.pt"], kept[6]]
    assert [name for name in names(tmp_path) if name.startswith("epoch")] == [f"epoch-000{n}.pt" for n in (2, 6, 8)]
    assert read(tmp_path / "best.pt")["epoch"] == 6
    assert all(read(tmp_path / f"epoch-000{n}.pt")["epoch"] == n for n in (2, 6, 8))


def test_of_equal_values_the_first_is_best(tmp_path):
    make(Logs(2.0, 1.0, 1.0), CheckpointSaver(tmp_path, "value", "min")).fit(batches((4,)), epochs=3)
    assert read(tmp_path / "best.pt")["epoch"] == 2


def test_every_so_many_steps(tmp_path):
    seen = []

    class Look(Callback):
        def on_batch_begin(self, state):
            if (tmp_path / "last.pt").exists():
                saved = read(tmp_path / "last.pt")
                seen.append((state.global_step, saved["global_step"]))

    make(CheckpointSaver(tmp_path, every_steps=2), Look()).fit(batches(), epochs=2)
    assert [saved for _, saved in seen] == [2, 2, 4, 5, 6, 6, 8, 8]


def test_nan_never_replaces_a_finite_checkpoint(tmp_path, capsys):
    data = batches()
    saver = CheckpointSaver(tmp_path, "train/loss", every_steps=1)

    class Poison(Callback):
        def on_batch_begin(self, state):
            if state.epoch == 1 and state.batch_idx == 2:
                state.input = state.input * float("nan")

    make(saver, Poison(), model=nn.Linear(6, 3)).fit(data, epochs=3)
    last, best = read(tmp_path / "last.pt"), read(tmp_path / "best.pt")
    assert last["global_step"] == 7
    assert best["epoch"] == 1
    for saved in (last, best):
        assert all(torch.isfinite(value).all() for value in saved["model"].values())
    assert "weights that are nan or infinite; it is not saved" in capsys.readouterr().out


def test_a_criterion_that_is_nan_is_not_saved(tmp_path):
    runner = make(CheckpointSaver(tmp_path, "train/loss"))
    runner.state.criterion = nn.CrossEntropyLoss()
    runner.state.criterion.scale = nn.Parameter(torch.tensor(math.nan), requires_grad=False)
    runner.fit(batches())
    assert not (tmp_path / "last.pt").exists()


def test_files_of_others_stay(tmp_path):
    for name in ("epoch-0001.txt", "notes.md", "model.pt", ".hidden"):
        (tmp_path / name).write_text("mine")
    make(Logs(3.0, 2.0, 1.0), CheckpointSaver(tmp_path, "value", "min", keep=2)).fit(batches((4,)), epochs=3)
    for name in ("epoch-0001.txt", "notes.md", "model.pt", ".hidden"):
        assert (tmp_path / name).read_text() == "mine"


def test_a_new_run_sets_the_old_ones_checkpoints_aside(tmp_path, capsys):
    for number in range(3):
        make(CheckpointSaver(tmp_path), lr=0.1 / (number + 1)).fit(batches(), epochs=2)
    assert names(tmp_path) == ["before-last.pt", "best.pt", "last.pt", "previous-1", "previous-2"]
    for folder, lr in (("previous-1", 0.1), ("previous-2", 0.05), (".", 0.1 / 3)):
        assert read(tmp_path / folder / "last.pt")["optimizer"]["param_groups"][0]["lr"] == lr
    assert "earlier run" in capsys.readouterr().out


def test_without_hard_links_files_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    make(CheckpointSaver(tmp_path, keep=2)).fit(batches(), epochs=3)
    assert all(read(tmp_path / name)["epoch"] for name in names(tmp_path))
    assert (tmp_path / "best.pt").stat().st_ino != (tmp_path / "last.pt").stat().st_ino


# Resume


class Noisy(Dataset):
    """Augments at random with every generator there is."""

    def __len__(self):
        return 14

    def __getitem__(self, index):
        noise = torch.randn(6) + numpy.random.randn() + random.random()
        return noise + index, index % 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resume_with_augmentation_workers_and_schedules_ends_with_the_same_bits(tmp_path, workers):
    def run(folder, epochs=3, stop=None, **options):
        torch.manual_seed(1)
        random.seed(1)
        numpy.random.seed(1)
        loader = DataLoader(Noisy(), 4, shuffle=True, num_workers=workers)
        runner = make(
            CheckpointSaver(folder, every_steps=1, **options),
            LRScheduler(lambda optimizer, steps: CosineAnnealingLR(optimizer, steps)),
            EarlyStopping(patience=5),
            ModelEma(0.9),
            FileLogger(folder / "log.csv"),
            use_fp16=True,
        )
        if stop:
            runner.state.callbacks.append(stop)
        runner.fit(loader, epochs=epochs, val_loader=batches(seed=1))
        return runner.state

    class Interrupt(Callback):
        def on_batch_begin(self, state):
            if state.is_train and (state.epoch, state.batch_idx) == (1, 2):
                raise ZeroDivisionError

    gold = run(tmp_path / "gold")
    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", stop=Interrupt())
    torch.manual_seed(99)
    resumed = run(tmp_path / "run", resume=True)
    assert whole(resumed) == whole(gold)
    assert (tmp_path / "run" / "log.csv").read_text() == (tmp_path / "gold" / "log.csv").read_text()


def test_a_worse_epoch_after_the_resume_does_not_replace_best(tmp_path):
    values = [4.0, 1.0, 2.0, 3.0, 0.5]
    make(Logs(*values), CheckpointSaver(tmp_path, "value", "min", keep=2)).fit(batches((4,)), epochs=3)
    saver = CheckpointSaver(tmp_path, "value", "min", keep=2, resume=True)
    with pytest.warns(UserWarning, match="epochs 3 -> 4"):
        make(Logs(*values), saver).fit(batches((4,)), epochs=4)
    assert read(tmp_path / "best.pt")["epoch"] == 2
    assert [name for name in names(tmp_path) if name.startswith("epoch")] == ["epoch-0002.pt", "epoch-0003.pt"]
    with pytest.warns(UserWarning, match="epochs 4 -> 5"):
        make(Logs(*values), saver).fit(batches((4,)), epochs=5)
    assert read(tmp_path / "best.pt")["epoch"] == 5
    assert [name for name in names(tmp_path) if name.startswith("epoch")] == ["epoch-0002.pt", "epoch-0005.pt"]


def test_a_finished_run_does_nothing_and_says_so(tmp_path, capsys):
    gold = make(CheckpointSaver(tmp_path))
    gold.fit(batches(), epochs=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    resumed = make(CheckpointSaver(tmp_path, resume="auto"), model=network(seed=5))
    history = resumed.fit(batches(), epochs=2)
    assert history == gold.state.history
    assert flat(resumed.state.model.state_dict()) == flat(gold.state.model.state_dict())
    assert "is complete, 2 of 2 epochs. Pass more epochs to fit" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_epoch_boundary_resume_does_the_steps_that_are_left(tmp_path, capsys):
    make(CheckpointSaver(tmp_path)).fit(batches(), epochs=2)
    steps = []

    class Count(Callback):
        def on_batch_end(self, state):
            steps.append((state.epoch, state.batch_idx))

    with pytest.warns(UserWarning, match="epochs 2 -> 3"):
        make(CheckpointSaver(tmp_path, resume=True), Count()).fit(batches(), epochs=3)
    assert steps == [(2, step) for step in range(5)]
    assert f"resumed from {tmp_path}/last.pt, in epoch 3 of 3" in capsys.readouterr().out


def test_other_settings_are_named_in_one_warning_and_the_run_continues(tmp_path):
    make(CheckpointSaver(tmp_path)).fit(DataLoader(batches((1,) * 12), batch_size=4, collate_fn=joined), epochs=2)
    other = DataLoader(batches((1,) * 10), batch_size=2, collate_fn=joined)
    with pytest.warns(
        UserWarning, match="with other settings: epochs 2 -> 3, batches per epoch 3 -> 5, batch_size 4 -> 2"
    ):
        history = make(CheckpointSaver(tmp_path, resume=True)).fit(other, epochs=3)
    assert len(history) == 3


def joined(samples):
    return tuple(torch.cat(part) for part in zip(*samples, strict=True))


def test_another_number_of_processes_takes_the_steps_that_are_left(tmp_path):
    class Stop(Callback):
        def on_batch_end(self, state):
            state.should_stop = state.epoch == 1 and state.batch_idx == 2

    make(CheckpointSaver(tmp_path), Stop()).fit(batches(), epochs=3)
    saved = read(tmp_path / "last.pt")
    torch.save({**saved, "ranks": saved["ranks"] * 4}, tmp_path / "last.pt")
    steps = []

    class Count(Callback):
        def on_batch_end(self, state):
            steps.append((state.epoch, state.batch_idx))

    with pytest.warns(UserWarning, match="processes 4 -> 1. The interrupted epoch continues after batch 3 of 5"):
        make(CheckpointSaver(tmp_path, resume=True), Count()).fit(batches(), epochs=3)
    assert steps == [(1, 3), (1, 4), *((2, step) for step in range(5))]


def test_nothing_to_resume_from_is_an_error_or_a_new_start(tmp_path, capsys):
    steps = Snapshots()
    with pytest.raises(FileNotFoundError, match=r'no checkpoint in .* to resume from. Pass resume="auto" to start'):
        make(CheckpointSaver(tmp_path, resume=True), steps).fit(batches())
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*other\.pt to resume from"):
        make(CheckpointSaver(tmp_path, resume=tmp_path / "other.pt"), steps).fit(batches())
    assert steps.saved == []
    assert len(make(CheckpointSaver(tmp_path, resume="auto")).fit(batches())) == 1
    assert "no checkpoint in" in capsys.readouterr().out


def test_resume_from_another_folder_or_file(tmp_path):
    first = make(CheckpointSaver(tmp_path / "a"))
    first.fit(batches(), epochs=2)
    for number, source in enumerate((tmp_path / "a", tmp_path / "a" / "last.pt", str(tmp_path / "a" / "best.pt"))):
        folder = tmp_path / str(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(CheckpointSaver(folder, resume=source)).fit(batches(), epochs=3)
        assert read(folder / "last.pt")["epoch"] == 3
    assert read(tmp_path / "a" / "last.pt")["epoch"] == 2


def test_a_stop_by_another_callback_is_saved(tmp_path):
    class Stop(Callback):
        def __init__(self, train):
            self.train = train

        def on_batch_end(self, state):
            if state.is_train == self.train and state.epoch == 1 and state.batch_idx == 2:
                state.should_stop = True

    gold = make(CheckpointSaver(tmp_path / "gold"))
    gold.fit(batches(), epochs=3, val_loader=batches(seed=1))
    for train in (True, False):
        folder = tmp_path / str(train)
        make(CheckpointSaver(folder), Stop(train)).fit(batches(), epochs=3, val_loader=batches(seed=1))
        resumed = make(CheckpointSaver(folder, resume=True), model=network(seed=4))
        resumed.fit(batches(), epochs=3, val_loader=batches(seed=1))
        assert whole(resumed.state) == whole(gold.state)


def test_the_place_in_the_data_is_said(tmp_path, capsys):
    class Stop(Callback):
        def on_batch_end(self, state):
            state.should_stop = state.batch_idx == 3

    make(CheckpointSaver(tmp_path), Stop()).fit(batches())
    make(CheckpointSaver(tmp_path, resume=True)).fit(batches())
    assert f"resumed from {tmp_path}/last.pt, in epoch 1 of 1, after batch 4\n" in capsys.readouterr().out


# Two runs in one folder


def test_two_savers_in_one_folder_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match=r"two CheckpointSavers write to .*: give each a folder of its own"):
        make(CheckpointSaver(tmp_path), CheckpointSaver(tmp_path / "." / "")).fit(batches())
    make(CheckpointSaver(tmp_path)).fit(batches())  # the folder is free again


ELSEWHERE = """
import sys
from fit_callbacks.checkpoint.lock import FolderLock
from pathlib import Path

lock = FolderLock()
lock.acquire(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_folder_of_another_process_is_refused_until_that_is_killed(tmp_path):
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(RuntimeError, match=rf"another run is writing to .* \(process {other.pid}\): wait for it"):
            make(CheckpointSaver(tmp_path)).fit(batches())
        other.kill()
        other.wait()
    make(CheckpointSaver(tmp_path)).fit(batches())
    assert (tmp_path / "last.pt").exists()


# Damage


def spoil_by_truncation(path):
    path.write_bytes(path.read_bytes()[:-100])


def spoil_to_nothing(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [flip, spoil_by_truncation, spoil_to_nothing])
def test_a_damaged_checkpoint_is_found_and_the_one_before_is_used(tmp_path, spoil):
    gold = make(CheckpointSaver(tmp_path / "gold"))
    gold.fit(batches(), epochs=3)
    make(CheckpointSaver(tmp_path / "a")).fit(batches(), epochs=2)
    saved = read(tmp_path / "a" / "before-last.pt")
    assert saved["epoch"] == 1
    (tmp_path / "a" / "best.pt").unlink()  # may be the same file as last.pt
    spoil(tmp_path / "a" / "last.pt")
    runner = make(CheckpointSaver(tmp_path / "a", resume=True), model=network(seed=3))
    with pytest.warns(UserWarning, match="cannot be used") as caught:
        runner.fit(batches(), epochs=3)
    message = str(caught[0].message)
    assert "last.pt cannot be used: " in message
    assert "before-last.pt is used in its place" in message
    assert flat(runner.state.model.state_dict()) == flat(gold.state.model.state_dict())


def test_a_flipped_bit_would_go_unseen_by_torch(tmp_path):
    make(CheckpointSaver(tmp_path)).fit(batches())
    flip(tmp_path / "last.pt")
    torch.load(tmp_path / "last.pt", weights_only=True)  # this is why checksums are compared
    with pytest.raises(CheckpointError, match=r"the checksum of its record .* is wrong"):
        read(tmp_path / "last.pt")


@pytest.mark.parametrize("resume", [True, "auto"])
def test_all_damaged_is_an_error_and_never_a_fresh_start(tmp_path, resume):
    make(CheckpointSaver(tmp_path)).fit(batches(), epochs=2)
    for path in tmp_path.iterdir():
        spoil_by_truncation(path)
    steps = Snapshots()
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used: .*last\.pt .*before-last\.pt .*best\.pt"):
        make(CheckpointSaver(tmp_path, resume=resume), steps).fit(batches())
    assert steps.saved == []


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    steps = Snapshots()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="must be a folder, got the file"):
        make(steps, CheckpointSaver(tmp_path / "file")).fit(batches())
    assert steps.saved == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        make(CheckpointSaver(tmp_path)).fit(batches())


def test_a_callback_that_raises_shows_in_the_traceback_and_loses_nothing(tmp_path):
    class Fail(Callback):
        def on_batch_end(self, state):
            if state.epoch == 1:
                raise LookupError("mine")

    with pytest.raises(LookupError) as caught:
        make(CheckpointSaver(tmp_path), Fail()).fit(batches(), epochs=2)
    assert caught.traceback[-1].name == "on_batch_end"
    assert read(tmp_path / "last.pt")["epoch"] == 1


def test_a_misspelt_monitor_is_refused_before_the_first_step(tmp_path):
    steps = Watch("on_batch_end", lambda state: 1)
    with pytest.raises(
        ValueError, match=r"monitor 'train/los' not found\. Did you mean 'train/loss'\? There are: train"
    ):
        make(CheckpointSaver(tmp_path, "train/los"), steps).fit(batches())
    assert steps.seen == []


def test_the_best_model_is_that_of_the_highest_accuracy(tmp_path):
    def rising(output, target):
        return float(runner.state.epoch)

    rising.higher_is_better = True
    runner = make(CheckpointSaver(tmp_path, "val/rising"), metrics=[rising])
    runner.fit(batches((4,)), 3, val_loader=batches((4,)))
    assert read(tmp_path / "best.pt")["monitor"] == {"name": "val/rising", "value": 2.0, "weights": "model"}


def test_a_run_resumed_with_another_monitor_starts_its_best_from_scratch(tmp_path):
    make(CheckpointSaver(tmp_path), metrics=[accuracy]).fit(batches(), 2)
    saver = CheckpointSaver(tmp_path, "train/accuracy", "max", resume=True)
    with pytest.warns(UserWarning, match=r"monitor train/loss \(lower is better\) .* with train/accuracy \(higher"):
        history = make(saver, metrics=[accuracy]).fit(batches(), 3)
    best = read(tmp_path / "best.pt")["monitor"]
    assert best == {"name": "train/accuracy", "value": history[2]["train/accuracy"], "weights": "model"}


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    make(CheckpointSaver(tmp_path)).fit(batches())
    model = nn.Sequential(nn.Linear(6, 3))
    before = flat(model.state_dict())
    with pytest.raises(
        ValueError, match=r"another model\. Nothing was loaded:(?s:.*)unexpected: 1\.weight(?s:.*)shape: 0"
    ):
        make(CheckpointSaver(tmp_path, resume=True), model=model).fit(batches())
    assert flat(model.state_dict()) == before


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path):
    make(CheckpointSaver(tmp_path)).fit(batches())
    saved = read(tmp_path / "last.pt")
    torch.save({**saved, "format": 7}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"has format 7, and this fit-core reads up to 1: upgrade"):
        make(CheckpointSaver(tmp_path, resume=True)).fit(batches())


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"format": 1, "model": Bomb(tmp_path / "exploded")}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=r"last\.pt cannot be used"):
        make(CheckpointSaver(tmp_path, resume=True)).fit(batches())
    (tmp_path / "last.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        make(CheckpointSaver(tmp_path, resume="auto")).fit(batches())
    torch.save([1, 2], tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="holds a list and not a run"):
        read(tmp_path / "last.pt")
    assert not (tmp_path / "exploded").exists()


def test_arguments_that_mean_nothing(tmp_path):
    for options, message in (
        ({"keep": 0}, "keep must be 1 or more"),
        ({"every_steps": 0}, "every_steps must be a number"),
        ({"mode": "best"}, "mode must be 'min'"),
    ):
        with pytest.raises(ValueError, match=message):
            CheckpointSaver(tmp_path, **options)


# In the background


def test_the_background_writes_the_same_bits(tmp_path):
    for background in (False, True):
        folder = tmp_path / str(background)
        make(CheckpointSaver(folder, every_steps=1, background=background)).fit(batches(), epochs=3)
    for name in ("last.pt", "before-last.pt", "best.pt"):
        assert flat(read(tmp_path / "True" / name)) == flat(read(tmp_path / "False" / name))


def test_the_background_copies_at_once_and_the_next_save_waits(tmp_path, monkeypatch):
    may_write, log = threading.Event(), []
    real = fit_callbacks.checkpoint.saver.write

    def slow(content, part):
        assert may_write.wait(60)
        log.append(content["global_step"])
        real(content, part)

    monkeypatch.setattr(fit_callbacks.checkpoint.saver, "write", slow)

    class Steps(Callback):
        def on_batch_end(self, state):
            log.append(f"step {state.global_step}")
            if state.global_step == 3:
                may_write.set()

    saver = CheckpointSaver(tmp_path, every_steps=2, background=True)
    make(saver, Steps(), model=nn.Linear(6, 3)).fit(batches((8,) * 4))
    assert log[:3] == ["step 1", "step 2", "step 3"]  # the third step did not wait for the second's file
    assert [entry for entry in log if isinstance(entry, int)] == [2, 4, 4]
    assert read(tmp_path / "before-last.pt")["global_step"] == 4


def test_an_error_of_the_writer_reaches_the_user(tmp_path, monkeypatch):
    def fail(content, part):
        raise CheckpointError("the disk has gone")

    monkeypatch.setattr(fit_callbacks.checkpoint.saver, "write", fail)
    for every_steps, epochs in ((1, 1), (None, 1)):  # at the next save, and at the end of the run
        saver = CheckpointSaver(tmp_path, every_steps=every_steps, background=True)
        with pytest.raises(CheckpointError, match="the disk has gone"):
            make(saver).fit(batches(), epochs=epochs)


# The tool


def test_the_tool_lists_a_folder(tmp_path):
    make(CheckpointSaver(tmp_path, keep=2)).fit(batches(), epochs=3)
    command = [sys.executable, "-W", "error", "-m", "fit_callbacks.checkpoint"]
    result = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert lines.keys() == {"file", "last.pt", "before-last.pt", "best.pt", "epoch-0002.pt", "epoch-0003.pt"}
    loss = read(tmp_path / "last.pt")["monitor"]["value"]
    assert lines["last.pt"].split()[:5] == ["last.pt", "3", "15", "train/loss", f"{loss:.6g}"]
    assert lines["last.pt"].endswith(" kB  whole")
    flip(tmp_path / "before-last.pt")
    result = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "DAMAGED" in next(line for line in result.stdout.splitlines() if line.startswith("before-last.pt"))
    result = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (2, "usage: python -m fit_callbacks.checkpoint FOLDER\n")
