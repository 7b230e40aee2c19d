"""TensorBoard: what it writes is read back from its files."""

from types import SimpleNamespace

import pytest
import torch
from fit_callbacks import FileLogger, LRScheduler, TensorBoard
from fit_callbacks.running import running_metrics
from fit_core import Callback
from read_back import close, curves, events
from scene import Snapshots, Watch, accuracy, batches, flat, load, make, network
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

# TensorBoard


def test_a_point_an_epoch_and_running_values_between(tmp_path):
    lr = Watch("on_epoch_end", lambda state: state.optimizer.param_groups[0].update(lr=0.05))
    losses = Watch("on_batch_end", lambda state: (state.is_train, state.loss.item(), state.batch_size))
    board = TensorBoard(tmp_path, every=2)
    history = make(board, lr, losses, metrics=[accuracy]).fit(batches(), epochs=2, val_loader=batches(seed=1))
    assert board.writer is None
    read = curves(tmp_path)
    for tag in ("train/loss", "val/loss", "train/accuracy", "val/accuracy"):
        assert read[tag] == [(5, close(history[0][tag])), (10, close(history[1][tag]))]
    assert [step for step, _ in read["train_step/loss"]] == [2, 4, 6, 8, 10]
    steps = [(loss, size) for is_train, loss, size in losses.seen if is_train]
    since = [steps[0:2], steps[2:4], steps[5:6], steps[6:8], steps[8:10]]  # each epoch starts from scratch
    means = [sum(loss * size for loss, size in part) / sum(size for _, size in part) for part in since]
    assert [value for _, value in read["train_step/loss"]] == close(means)
    assert read["train_step/accuracy"][-1] == (10, close(history[1]["train/accuracy"]))
    assert read["lr"][0] == (2, close(0.1))
    assert [value for _, value in read["lr"]] == close([0.1, 0.1, 0.1, 0.05, 0.05, 0.05])  # at 2 4 5 6 8 10


@pytest.mark.parametrize(("x", "ends"), [("steps", [3, 6]), ("samples", [37, 74]), ("epochs", [1, 2])])
def test_the_axis_counts_steps_samples_or_epochs(tmp_path, x, ends):
    make(TensorBoard(tmp_path, every=1, x=x), accumulate_steps=2).fit(batches(), epochs=2)
    read = curves(tmp_path)
    assert [step for step, _ in read["train/loss"]] == ends
    assert ("train_step/loss" in read) == (x != "epochs")


def test_groups_have_a_learning_rate_each(tmp_path):
    model = network()
    runner = make(TensorBoard(tmp_path), model=model)
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[4].parameters(), "lr": 0.25}]
    runner.state.optimizer = torch.optim.SGD(groups)
    runner.fit(batches())
    read = curves(tmp_path)
    assert (read["lr/0"], read["lr/1"]) == ([(5, 0.5)], [(5, 0.25)])


@pytest.mark.parametrize("groups", [1, 2])
def test_the_learning_rates_are_those_of_the_epoch_although_a_schedule_has_set_the_next(tmp_path, groups):
    schedule = LRScheduler(lambda optimizer, steps: torch.optim.lr_scheduler.StepLR(optimizer, 1), interval="epoch")
    runner = make(TensorBoard(tmp_path), schedule)
    if groups == 2:
        model = runner.state.model
        runner.state.optimizer = torch.optim.SGD(
            [{"params": model[0].parameters()}, {"params": model[4].parameters()}], lr=0.1
        )
    history = runner.fit(batches(), epochs=3)
    read = curves(tmp_path)["lr" if groups == 1 else "lr/0"]
    assert read == [(5 * row["epoch"], close(row["lr"])) for row in history]


def test_only_the_inputs_of_the_validation_are_shown(tmp_path):
    class Test(Callback):
        def on_epoch_end(self, state):
            runner.evaluate(images, name="test")

    images = [(torch.rand(5, 1, 2, 3), torch.randint(3, (5,)))]
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    runner = make(TensorBoard(tmp_path, images=1), Test(), model=model)
    runner.fit(images, epochs=2, val_loader=images)
    assert [image.step for image in events(tmp_path).Images("val/input")] == [1, 2]


def test_hyperparameters_are_in_the_same_run(tmp_path):
    make(TensorBoard(tmp_path, hparams={"width": 12, "path": tmp_path})).fit(batches(), epochs=2)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    content = events(tmp_path).summary_metadata
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= content.keys()
    start = content["_hparams_/session_start_info"].plugin_data.content
    for text in (b"width", b"SGD", b"Sequential", str(tmp_path).encode()):
        assert text in start
    assert b"train/loss" in content["_hparams_/experiment"].plugin_data.content


@pytest.mark.parametrize("drop_last", [False, True])
def test_the_batch_size_is_that_of_the_loader_although_the_last_batch_is_short(tmp_path, drop_last):
    data = TensorDataset(torch.randn(37, 6), torch.randint(3, (37,)))
    make(TensorBoard(tmp_path), accumulate_steps=2).fit(DataLoader(data, batch_size=8, drop_last=drop_last))
    start = events(tmp_path).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert HParamsPluginData.FromString(start).session_start_info.hparams["batch_size"].number_value == 8


def test_graph_histograms_and_images_do_not_change_the_run(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.convolution = nn.Conv2d(1, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            x = self.norm(self.convolution(x)).relu().mean((2, 3))
            return self.head(nn.functional.dropout(x, 0.5, self.training))

    data = [(torch.randn(5, 1, 8, 8), torch.randint(3, (5,))) for _ in range(3)]
    torch.manual_seed(1)
    plain = make(model=Net())
    plain.fit(data, epochs=2, val_loader=data)
    board = TensorBoard(tmp_path, graph=True, histograms=True, images=3)
    shown = make(board, model=Net())
    shown.fit(data, epochs=2, val_loader=data)
    assert flat(plain.state.state_dict()["model"]) == flat(shown.state.state_dict()["model"])
    read = events(tmp_path)
    tags = read.Tags()
    assert tags["graph"]
    assert len(read.Histograms("convolution/weight")) == 2
    assert [image.step for image in read.Images("val/input")] == [3, 6]
    assert read.Images("val/input")[0].width == 3 * 8  # three in a row


def test_wrong_settings_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="expected x to be 'steps', 'samples' or 'epochs', got 'batches'"):
        TensorBoard(tmp_path, x="batches")
    with pytest.raises(ValueError, match="expected every to be a number of optimizer steps"):
        TensorBoard(tmp_path, every=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="to be a folder, got the file"):
        make(TensorBoard(tmp_path / "file")).fit(batches())


def test_another_run_in_the_folder_hides_the_first(tmp_path):
    make(TensorBoard(tmp_path, every=1)).fit(batches(), epochs=3)
    history = make(TensorBoard(tmp_path, every=1), lr=0.01).fit(batches(), epochs=1)
    assert len(list(tmp_path.iterdir())) == 2
    assert curves(tmp_path)["train/loss"] == [(5, close(history[0]["train/loss"]))]


def test_evaluate_alone_writes_nothing(tmp_path):
    make(TensorBoard(tmp_path, every=1)).evaluate(batches())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_resumed_run_logs_no_step_twice_and_none_missing(tmp_path, before, accumulate_steps):
    def run(folder, stop=None, resume=None):
        snapshots = Snapshots()
        board, file = TensorBoard(folder, every=1), FileLogger(folder / "log.csv")
        callbacks = [board, file, snapshots] if before else [snapshots, board, file]
        runner = make(*callbacks, metrics=[accuracy], accumulate_steps=accumulate_steps)
        if resume:
            runner.state.load_state_dict(load(resume))
        if stop is not None:
            runner.state.callbacks.append(Kill(stop, snapshots))
            with pytest.raises(KeyboardInterrupt):
                runner.fit(batches(), epochs=3, val_loader=batches(seed=1))
        else:
            runner.fit(batches(), epochs=3, val_loader=batches(seed=1))
        return snapshots.saved

    class Kill(Callback):
        """Ends the run some batches after the checkpoint that will be used, in which more has been written."""

        def __init__(self, at, snapshots):
            self.at = at + 3
            self.snapshots = snapshots

        def on_batch_begin(self, state):
            if len(self.snapshots.saved) >= self.at:
                raise KeyboardInterrupt

    count = len(run(tmp_path / "gold"))
    assert count == 3 * 6
    for stop in range(count - 4):
        folder = tmp_path / str(stop)
        saved = run(folder, stop=stop)
        run(folder, resume=saved[stop])
        assert curves(folder) == curves(tmp_path / "gold"), stop
        assert (folder / "log.csv").read_text() == (tmp_path / "gold" / "log.csv").read_text()


def test_a_run_that_was_killed_after_its_last_checkpoint_gets_its_last_epoch(tmp_path):
    def run(folder, *others, resume=None):
        runner = make(TensorBoard(folder, every=1), *others)
        if resume:
            runner.state.load_state_dict(load(resume))
        runner.fit(batches(), epochs=2, val_loader=batches(seed=1))

    class Kill(Callback):
        def on_checkpoint(self, state):
            if state.epoch == 2:
                raise KeyboardInterrupt

    run(tmp_path / "gold")
    snapshots = Snapshots()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TensorBoard, "on_end", Callback.on_end)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", snapshots, Kill())
    assert "val/loss" in curves(tmp_path / "gold")
    for _ in range(2):  # The second time nothing is missing.
        run(tmp_path / "killed", resume=snapshots.saved[-1])
        assert curves(tmp_path / "killed") == curves(tmp_path / "gold")


def test_running_values_do_not_exchange_with_other_processes():
    """The compute() of torchmetrics waits for all processes, and only rank 0 asks for running values."""
    torchmetrics = pytest.importorskip("torchmetrics")
    single = torchmetrics.MeanSquaredError()
    several = torchmetrics.MetricCollection([torchmetrics.MeanAbsoluteError()])
    for metric in (single, several):
        metric.update(torch.ones(2), torch.zeros(2))
    assert running_metrics(SimpleNamespace(world_size=2, metrics=[single, several], loss_meters={})) == {}
    assert running_metrics(SimpleNamespace(world_size=1, metrics=[several], loss_meters={})) == {
        "MeanAbsoluteError": 1.0
    }


def test_running_values_of_nested_results_have_tags(tmp_path):
    class Nested:
        name = "nested"

        def reset(self):
            pass

        def update(self, output, target):
            pass

        def compute(self):
            return {"f1": {"cat": 0.5}, "note": "text", "matrix": torch.ones(2, 2)}

    with pytest.warns(UserWarning, match="note is not logged"):
        make(TensorBoard(tmp_path, every=1), metrics=[Nested()]).fit(batches())
    tags = curves(tmp_path)
    assert {tag for tag in tags if "f1" in tag} == {"train_step/f1/cat", "train/f1/cat"}
    assert not any("note" in tag or "matrix" in tag for tag in tags)
