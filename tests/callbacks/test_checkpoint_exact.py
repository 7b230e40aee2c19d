"""A run that is resumed from a checkpoint ends with the same bits, and does the steps that are left."""

import random
import warnings

import numpy
import pytest
import torch
from fit_callbacks import CheckpointSaver, EarlyStopping, FileLogger, LRScheduler, ModelEma
from fit_callbacks.checkpoint import read
from fit_core import Callback
from scene import Snapshots, batches, flat, make, network
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset


def whole(state):
    return flat({key: value for key, value in state.state_dict().items() if key != "settings"})


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


def test_a_finished_run_does_nothing_and_says_so(tmp_path, capsys):
    gold = make(CheckpointSaver(tmp_path))
    gold.fit(batches(), epochs=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    resumed = make(CheckpointSaver(tmp_path, resume="auto"), model=network(seed=5))
    history = resumed.fit(batches(), epochs=2)
    assert history == gold.state.history
    assert flat(resumed.state.model.state_dict()) == flat(gold.state.model.state_dict())
    assert "has 2 epochs and fit asks for 2. Pass more epochs to fit" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="epochs 2 -> 1"):
        make(CheckpointSaver(tmp_path, resume="auto")).fit(batches(), epochs=1)
    assert "has 2 epochs and fit asks for 1. Pass more epochs to fit" in capsys.readouterr().out
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
    with pytest.raises(
        FileNotFoundError, match=r'a checkpoint in .* to resume from, got none. Pass resume="auto" to start'
    ):
        make(CheckpointSaver(tmp_path, resume=True), steps).fit(batches())
    with pytest.raises(FileNotFoundError, match=r"a checkpoint to resume from, got .*other\.pt"):
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
