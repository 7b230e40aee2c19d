"""Check every callback of fit_callbacks with fit_core.testing."""

import copy
import functools

import pytest
import torch
from fit_core import Callback
from fit_core.testing import CALLBACK_CHECKS, CallbackCase, check_ranks, in_two_processes, train_on_rank
from fit_core.testing.callbacks import check_any_batch, check_make_step, check_resume
from fit_core.testing.runners import vectors
from torch import nn
from torch.optim import lr_scheduler

fit_callbacks = pytest.importorskip("fit_callbacks")


def one_cycle(optimizer, steps):
    return lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=steps + 1)


def images(seed, size=()):
    """Return batches of images with one class each, or one per pixel if `size` is that of an image."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(n, 1, 6, 6, generator=generator), torch.randint(3, (n, *size), generator=generator))
        for n in (8, 8, 8, 8, 5)
    ]


def classifier():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def segmenter():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))


class Matrix:
    """A confusion matrix of three classes, as a metric."""

    name = "ConfusionMatrix"

    def __init__(self):
        self.reset()

    def reset(self):
        self.counts = torch.zeros(3, 3, dtype=torch.long)

    def update(self, output, target):
        if target is None:
            return
        true = target.argmax(1) if target.dim() == output.dim() else target
        self.counts.view(-1).index_add_(0, true * 3 + output.argmax(1), torch.ones_like(true))

    def compute(self):
        return self.counts

    def all_reduce(self):
        torch.distributed.all_reduce(self.counts)

    def state_dict(self):
        return {"counts": self.counts.clone()}

    def load_state_dict(self, state_dict):
        self.counts = state_dict["counts"].clone()


def confusion(folder):
    board = fit_callbacks.TensorBoard(folder)
    return [board, fit_callbacks.ConfusionMatrix(board)]


def phases(folder):
    Phase = fit_callbacks.Phase
    return [fit_callbacks.PhasesScheduler([Phase(0, 1, (0, 0.2)), Phase(1, 9, (0.2, 0), "cos")])]


def log_to(folder):
    """The log function of a tracker that writes into a folder."""

    def log(values, step):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{step}.txt").write_text(str(values))

    return log


def case(make, **options):
    """Return a case for a callback that does not need others."""
    return CallbackCase(lambda folder: [make(fit_callbacks, folder)], **options)


CASES = {
    "AdaptiveGradientClipping": case(lambda fit, folder: fit.AdaptiveGradientClipping(0.1)),
    "BatchOverfit": case(lambda fit, folder: fit.BatchOverfit(2)),
    "CheckpointSaver": case(lambda fit, folder: fit.CheckpointSaver(folder, every_steps=2)),
    "CompiledStep": case(lambda fit, folder: fit.CompiledStep()),
    "ConfusionMatrix": CallbackCase(confusion, metrics=lambda: [Matrix()]),
    "ConsoleLogger": case(lambda fit, folder: fit.ConsoleLogger()),
    "Cutmix": case(lambda fit, folder: fit.Cutmix(3, p=0.7), network=classifier, batches=images),
    "EarlyStopping": case(lambda fit, folder: fit.EarlyStopping(patience=1)),
    "FileLogger": case(lambda fit, folder: fit.FileLogger(folder / "log.csv")),
    "Freeze": case(lambda fit, folder: fit.Freeze("0.", until=1), ddp_options={"find_unused_parameters": True}),
    "GradientClipping": case(lambda fit, folder: fit.GradientClipping(0.5)),
    "LRFinder": case(lambda fit, folder: fit.LRFinder(1e-3, steps=12), batches=lambda seed: vectors(seed) * 8),
    "LRScheduler": case(lambda fit, folder: fit.LRScheduler(one_cycle)),
    "Mixup": case(lambda fit, folder: fit.Mixup(3, p=0.7)),
    "ModelEma": case(lambda fit, folder: fit.ModelEma(0.8)),
    "PhasesScheduler": CallbackCase(phases),
    "Profiler": case(lambda fit, folder: fit.Profiler(folder, wait=1, warmup=1, active=2)),
    "ReduceLROnPlateau": case(lambda fit, folder: fit.ReduceLROnPlateau(patience=0, factor=0.5)),
    "Report": case(lambda fit, folder: fit.Report(log_to(folder), every=1)),
    "ResetOptimizer": case(lambda fit, folder: fit.ResetOptimizer([1, 2])),
    "ScheduledDropout": case(lambda fit, folder: fit.ScheduledDropout(0.1, 0.6)),
    "SegmCutmix": case(
        lambda fit, folder: fit.SegmCutmix(p=0.7),
        network=segmenter,
        batches=functools.partial(images, size=(6, 6)),
    ),
    "StopOnNonFinite": case(lambda fit, folder: fit.StopOnNonFinite()),
    "TensorBoard": case(lambda fit, folder: fit.TensorBoard(folder, every=1)),
    "Timer": case(lambda fit, folder: fit.Timer(), clock=("data_wait",)),
}
each = pytest.mark.parametrize("name", CASES)

# Checks that do not apply to a callback, and why.
NO_TENSORS = "it mixes input and target, and says so if they are not tensors"
EXEMPT = {
    ("CompiledStep", check_make_step): "a wrapped step runs as usual, and its results differ by rounding",
    ("Cutmix", check_any_batch): NO_TENSORS,
    ("LRFinder", check_resume): "a search restores the weights at its end, and an interrupted one starts from scratch",
    ("Mixup", check_any_batch): NO_TENSORS,
    ("SegmCutmix", check_any_batch): NO_TENSORS,
}
WRITERS = {"CheckpointSaver", "ConfusionMatrix", "FileLogger", "Profiler", "Report", "TensorBoard"}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Run the graphs of CompiledStep operation by operation, because compiling each takes seconds."""

    def interpret(graph, inputs):
        return torch.no_grad()(lambda tensors: graph(*tensors))

    monkeypatch.setattr("fit_callbacks.compiled.traced._compile", interpret)


def test_no_callback_is_forgotten(tmp_path):
    shipped = {name: getattr(fit_callbacks, name) for name in fit_callbacks.__all__}
    callbacks = {name for name, value in shipped.items() if isinstance(value, type) and issubclass(value, Callback)}
    assert callbacks == CASES.keys()
    for name, case in CASES.items():
        assert type(case.make(tmp_path / name)[-1]) is shipped[name]


@pytest.mark.parametrize(
    ("name", "check"),
    [(name, check) for name in CASES for check in CALLBACK_CHECKS if (name, check) not in EXEMPT],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_callback_keeps_the_protocol(name, check, tmp_path):
    check(CASES[name], tmp_path)


@each
def test_a_second_run_is_the_first_run_of_a_new_callback(name, tmp_path):
    """With weights and optimizer as the first run has left them, and nothing else of it."""
    case = CASES[name]
    runner, other = (case.runner(case.make(tmp_path / number)) for number in ("twice", "new"))
    runner.fit(case.batches(0), epochs=3, val_loader=case.batches(1))
    other.state.model.load_state_dict(copy.deepcopy(runner.state.model.state_dict()))
    other.state.optimizer.load_state_dict(copy.deepcopy(runner.state.optimizer.state_dict()))
    other.state.grad_scaler.load_state_dict(runner.state.grad_scaler.state_dict())
    for run in (runner, other):
        torch.manual_seed(1)
        run.fit(case.batches(0), epochs=3, val_loader=case.batches(1))
    assert case.facts(runner.state) == case.facts(other.state)


def on_a_rank(rank, folder):
    return {name: train_on_rank(case, rank, folder / name) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return in_two_processes(on_a_rank, tmp_path_factory.mktemp("ranks"))


@each
def test_two_processes_end_alike_and_one_prints(name, ranks):
    first, second = (results[name] for results in ranks)
    check_ranks(first, second)
    assert bool(first["files"]) == (name in WRITERS)
    assert first["steps"] > 0


def test_what_rank_0_prints_is_captured(ranks):
    assert " val " in ranks[0]["ConsoleLogger"]["printed"]
