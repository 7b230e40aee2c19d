"""Each callback works wherever a run does: accumulation, fp16, any loader, resumed, alone, compiled, in processes.

The checks for callbacks of any package are in tests/protocol. Here ours run at every point and together.
"""

import fit_callbacks
import pytest
import torch
from fit_callbacks import (
    AdaptiveGradientClipping,
    BatchOverfit,
    ConfusionMatrix,
    ConsoleLogger,
    EarlyStopping,
    FileLogger,
    Freeze,
    GradientClipping,
    LRScheduler,
    Mixup,
    ModelEma,
    Phase,
    PhasesScheduler,
    Profiler,
    ReduceLROnPlateau,
    Report,
    ResetOptimizer,
    ScheduledDropout,
    StopOnNonFinite,
    TensorBoard,
    Timer,
)
from fit_core import Callback
from fit_core.testing import in_two_processes
from fit_core.testing.runners import Snapshots
from scene import Matrix, batches, flat, make, network
from torch import nn
from torch.optim import lr_scheduler


def one_cycle(optimizer, steps):
    return lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=steps + 1)


def warm_cosine(optimizer, steps):
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=2), lr_scheduler.CosineAnnealingLR(optimizer, 3)]
    return lr_scheduler.SequentialLR(optimizer, parts, [2])


KINDS = {
    "agc": lambda folder: [AdaptiveGradientClipping(0.1)],
    "overfit": lambda folder: [BatchOverfit(2)],
    "console": lambda folder: [ConsoleLogger()],
    "confusion": lambda folder: [ConfusionMatrix(TensorBoard(folder))],
    "early": lambda folder: [EarlyStopping(patience=1)],
    "file": lambda folder: [FileLogger(folder / "log.csv")],
    "freeze": lambda folder: [Freeze("0.", until=1)],
    "clip": lambda folder: [GradientClipping(0.5)],
    "one cycle": lambda folder: [LRScheduler(one_cycle)],
    "cosine an epoch": lambda folder: [LRScheduler(warm_cosine, "epoch")],
    "mixup": lambda folder: [Mixup(3, p=0.7)],
    "ema": lambda folder: [ModelEma(0.9)],
    "phases": lambda folder: [PhasesScheduler([Phase(0, 1, (0, 0.2)), Phase(1, 9, (0.2, 0), "cos")])],
    "profiler": lambda folder: [Profiler(folder, wait=1)],
    "plateau": lambda folder: [ReduceLROnPlateau(patience=0, factor=0.5)],
    "report": lambda folder: [Report(lambda values, step: None, every=1)],
    "reset": lambda folder: [ResetOptimizer([1, 2])],
    "dropout": lambda folder: [ScheduledDropout(0.1, 0.6)],
    "finite": lambda folder: [StopOnNonFinite()],
    "tensorboard": lambda folder: [TensorBoard(folder, every=1)],
    "timer": lambda folder: [Timer()],
    "many": lambda folder: [
        ModelEma(0.8),
        Mixup(3),
        GradientClipping(0.5),
        GradientClipping(value=0.1),
        LRScheduler(one_cycle),
        EarlyStopping(patience=2),
        TensorBoard(folder),
        ScheduledDropout(0.0, 0.4),
    ],
}
every_kind = pytest.mark.parametrize("kind", KINDS)

# Callbacks that do not fit the batches here, and where they are tried instead.
ELSEWHERE = {
    "CheckpointSaver": "writes the states that the others go through: test_checkpoint.py, test_crash.py",
    "CompiledStep": "its steps equal the others up to rounding: test_compiled_step.py",
    "Cutmix": "wants images: test_cutmix_resumes_too, test_mixing.py",
    "LRFinder": "ends the run by itself and puts the state back: test_lr_finder.py",
    "SegmCutmix": "wants images and masks: test_mixing.py",
}


class Endless:
    """A loader without a len."""

    def __iter__(self):
        yield from batches()


def memory(state):
    """The results that two runs must have in common, without measured times."""
    saved = state.state_dict()
    for row in (saved["logs"], *saved["history"]):
        row.pop("data_wait", None)
    return flat({key: value for key, value in saved.items() if key != "settings"})


def test_no_callback_is_forgotten(tmp_path):
    tried = {type(callback).__name__ for make_all in KINDS.values() for callback in make_all(tmp_path)}
    shipped = (getattr(fit_callbacks, name) for name in fit_callbacks.__all__)
    callbacks = {member.__name__ for member in shipped if isinstance(member, type) and issubclass(member, Callback)}
    assert tried | ELSEWHERE.keys() == callbacks
    assert not tried & ELSEWHERE.keys()


@every_kind
@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_a_resumed_run_ends_with_the_same_bits(kind, accumulate_steps, tmp_path):
    def run(folder, saved=None):
        snapshots = Snapshots(() if saved else (0, 3, 5, 8, 11, 12))
        folder.mkdir()
        options = {"accumulate_steps": accumulate_steps, "use_fp16": accumulate_steps == 2}
        runner = make(*KINDS[kind](folder), snapshots, metrics=[Matrix()], **options)
        if saved:
            runner.state.load_state_dict(saved)
        runner.fit(batches(), epochs=3, val_loader=batches(seed=1))
        return runner, snapshots

    torch.manual_seed(0)
    gold, snapshots = run(tmp_path / "gold")
    for point in snapshots.saved:
        torch.manual_seed(7)
        resumed, _ = run(tmp_path / str(point), snapshots.load(point))
        assert memory(resumed.state) == memory(gold.state), point


@every_kind
def test_any_loader_and_evaluate_alone(kind, tmp_path):
    runner = make(*KINDS[kind](tmp_path), metrics=[Matrix()], accumulate_steps=3)
    assert "val/loss" in runner.evaluate(Endless())
    runner.fit(Endless(), epochs=2, steps_per_epoch=7, val_loader=Endless(), val_steps=2)
    assert len(runner.state.history) == 2
    assert "val/loss" in runner.evaluate(Endless())
    assert runner.predict(Endless()).shape == (37, 3)


@every_kind
def test_without_a_len_and_without_validation(kind, tmp_path):
    if kind in ("one cycle", "cosine an epoch", "phases", "many"):
        with pytest.raises(ValueError, match="Pass steps_per_epoch"):
            make(*KINDS[kind](tmp_path), metrics=[Matrix()]).fit(Endless())
    else:
        assert len(make(*KINDS[kind](tmp_path), metrics=[Matrix()]).fit(Endless(), epochs=2)) == 2


@pytest.mark.parametrize("wrap", [lambda model: torch.compile(model, backend="eager"), nn.DataParallel])
def test_wrapped_models_give_the_same_bits(wrap, tmp_path):
    def run(wrapped):
        torch.manual_seed(0)
        model = network()
        callbacks = [
            ModelEma(0.8),
            AdaptiveGradientClipping(0.1, exclude=["4."]),
            ScheduledDropout(0.1, 0.5, names="3"),
            TensorBoard(tmp_path, histograms=True),
        ]
        runner = make(*callbacks, model=wrap(model) if wrapped else model)
        runner.fit(batches(), epochs=2, val_loader=batches(seed=1))
        return memory(runner.state)

    assert run(wrapped=True) == run(wrapped=False)


class RankLoss(Callback):
    """Results that differ from rank to rank, as a callback of somebody's own may log them."""

    def on_epoch_end(self, state):
        state.logs["own"] = float((state.epoch + 1) * (1 if state.rank else -1))


def on_a_rank(rank, folder):
    torch.manual_seed(rank)
    board = TensorBoard(folder / "board", every=1)
    callbacks = [
        Timer(),
        ConsoleLogger(),
        board,
        ConfusionMatrix(board),
        FileLogger(folder / "log.csv"),
        ModelEma(0.8),
        Mixup(3),
        GradientClipping(0.1),
        AdaptiveGradientClipping(0.1),
        LRScheduler(one_cycle),
        StopOnNonFinite(),
        RankLoss(),
        ReduceLROnPlateau("own", "max", patience=0),
        EarlyStopping("own", "max", patience=2),
        Profiler(folder / "profile", wait=0),
    ]
    model = nn.parallel.DistributedDataParallel(network())
    runner = make(*callbacks, model=model, metrics=[Matrix()], accumulate_steps=2)
    history = runner.fit(batches(seed=rank), epochs=8, val_loader=batches(seed=5)[: 2 * rank + 1])
    counts = callbacks[3].matrix
    results = {
        "model": runner.state.state_dict()["model"],
        "ema": callbacks[5].model.state_dict(),
        "epochs": len(history),
        "counts": counts,
        "norms": [row["grad_norm"] for row in history],
    }
    bad = batches()
    if rank == 1:
        bad[2][0][:] = torch.nan
    with pytest.raises(FloatingPointError, match=rf"in epoch 1, batch 3 .* on rank {rank}"):
        make(StopOnNonFinite(), model=nn.parallel.DistributedDataParallel(nn.Linear(6, 3))).fit(bad)
    return results


@pytest.mark.timeout(200)
def test_two_processes_agree_and_one_writes(tmp_path):
    first, second = in_two_processes(on_a_rank, tmp_path)
    assert first["epochs"] == second["epochs"] == 3  # rank 0's value falls: best in the first epoch, two without
    names = [name for name in first["model"] if "running" not in name and "num_batches" not in name]
    for key in ("model", "ema"):  # the statistics of batch norm are each process's own
        assert flat({name: first[key][name] for name in names}) == flat({name: second[key][name] for name in names})
    assert first["norms"] == second["norms"]
    assert first["counts"].tolist() == second["counts"].tolist()
    assert int(first["counts"].sum()) == 8 + 3 * 8
    assert len(list((tmp_path / "board").iterdir())) == 1
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4
    assert len(list((tmp_path / "profile").iterdir())) == 1
