"""Every metric works on any split and number of processes, in a Runner, through a file, and without reading values."""

import copy
import io
import pickle

import fit_metrics as fm
import pytest
import torch
from fit_core import Callback, Metric, Runner
from fit_core.testing import in_two_processes
from torch import nn

G = torch.Generator().manual_seed(0)
SCORES = torch.randn(40, 4, generator=G), torch.randint(4, (40,), generator=G)
LABELS = SCORES[0], torch.randint(2, (40, 4), generator=G)
MASKED_LABELS = SCORES[0], torch.randint(-1, 2, (40, 4), generator=G)
LOGIT = torch.randn(40, generator=G), torch.randint(2, (40,), generator=G)
NUMBERS = 100 + torch.randn(40, generator=G), 100 + torch.randn(40, generator=G)
COLUMNS = torch.randn(40, 3, generator=G), torch.randn(40, 3, generator=G)
IMAGES = torch.rand(40, 1, 11, 12, generator=G), torch.rand(40, 1, 11, 12, generator=G)
METRICS = {
    "Acc@1": (lambda: fm.Accuracy(1), SCORES),
    "Acc@3": (lambda: fm.Accuracy(3, ignore_index=0), SCORES),
    "Acc of several k": (lambda: fm.Accuracy(1, 3, ignore_index=0), SCORES),
    "Acc of labels": (lambda: fm.Accuracy(task="multilabel"), LABELS),
    "BalancedAcc": (lambda: fm.BalancedAccuracy(4), SCORES),
    "ConfusionMatrix": (lambda: fm.ConfusionMatrix(4), SCORES),
    "ConfusionMatrix of labels": (lambda: fm.ConfusionMatrix(4, task="multilabel"), LABELS),
    "Precision": (lambda: fm.Precision(4, average="weighted", ignore_index=0), SCORES),
    "Recall": (lambda: fm.Recall(), LOGIT),
    "F1": (lambda: fm.F1(4), SCORES),
    "F1/micro": (lambda: fm.F1(4, average="micro", name="F1/micro"), SCORES),
    "F1 of labels": (lambda: fm.F1(4, task="multilabel", ignore_index=-1), MASKED_LABELS),
    "Dice": (lambda: fm.Dice(), LOGIT),
    "Jaccard": (lambda: fm.Jaccard(4, average=None), SCORES),
    "MSE": (lambda: fm.MeanSquaredError(), NUMBERS),
    "RMSE": (lambda: fm.MeanSquaredError(root=True), NUMBERS),
    "MAE": (lambda: fm.MeanAbsoluteError(), COLUMNS),
    "R2": (lambda: fm.R2(), NUMBERS),
    "R2 of 3": (lambda: fm.R2(3), COLUMNS),
    "PSNR": (lambda: fm.PSNR(), IMAGES),
    "SSIM": (lambda: fm.SSIM(), IMAGES),
    "AUROC": (lambda: fm.AUROC(), LOGIT),
    "AUROC of 4": (lambda: fm.AUROC(4), SCORES),
    "AUROC of labels": (lambda: fm.AUROC(4, task="multilabel", average="micro"), LABELS),
    "AP": (lambda: fm.AveragePrecision(), LOGIT),
    "AP of 4": (lambda: fm.AveragePrecision(4, average="weighted", ignore_index=0), SCORES),
}
each_metric = pytest.mark.parametrize("name", METRICS)


@each_metric
def test_a_metric_that_says_so_changes_nothing_but_tensors_in_place(name, monkeypatch):
    """So a CUDA graph, which repeats the work on tensors alone, counts every batch."""
    monkeypatch.setattr("fit_metrics.accuracy._is_captured", lambda output: True)
    make, (output, target) = METRICS[name]
    metric = make()
    for _ in range(2):  # The first batches may fix the kind of the task.
        metric.update(output, target)
    before = dict(vars(metric))
    metric.update(output, target)
    after = vars(metric)
    same = [
        after[key] is value or (not isinstance(value, torch.Tensor) and after[key] == value)
        for key, value in before.items()
    ]
    if metric.capturable:
        assert before.keys() == after.keys()
        assert all(same)
    else:  # It keeps its batches.
        assert isinstance(metric, fm.RankingMetric)


# The base classes of metrics. They cannot be created.
BASES = {fm.SumMetric, fm.ClassScore, fm.ImageMetric, fm.MatrixMetric, fm.RankingMetric}
HIGHER_IS_BETTER = {
    fm.AUROC: True,
    fm.Accuracy: True,
    fm.AveragePrecision: True,
    fm.BalancedAccuracy: True,
    fm.ConfusionMatrix: None,
    fm.Dice: True,
    fm.F1: True,
    fm.Jaccard: True,
    fm.MeanAbsoluteError: False,
    fm.MeanSquaredError: False,
    fm.PSNR: True,
    fm.Precision: True,
    fm.R2: True,
    fm.Recall: True,
    fm.SSIM: True,
}


def close(value, expected):
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-12, equal_nan=True)


def fed(name, start=0, stop=40, size=40):
    make, (output, target) = METRICS[name]
    metric = make()
    for at in range(start, stop, size):
        metric.update(output[at : min(at + size, stop)], target[at : min(at + size, stop)])
    return metric


def test_no_metric_is_forgotten():
    tried = {type(make()) for make, _ in METRICS.values()}
    assert tried == {getattr(fm, name) for name in fm.__all__} - BASES


@each_metric
def test_higher_is_better(name):
    metric = METRICS[name][0]()
    assert metric.higher_is_better is HIGHER_IS_BETTER[type(metric)]


SEVERAL_VALUES = {"Acc of several k", "ConfusionMatrix", "ConfusionMatrix of labels", "Jaccard"}


@pytest.mark.parametrize("name", sorted(METRICS.keys() - SEVERAL_VALUES))
def test_a_model_that_knows_the_targets_has_the_better_value(name):
    make, (output, target) = METRICS[name]
    metric, guessed = make(), fed(name).compute()
    if target.is_floating_point():
        known = target
    elif output.dim() == target.dim():
        known = 2.0 * target - 1
    else:
        known = nn.functional.one_hot(target, 4).float()
    metric.update(known, target)
    assert (metric.compute() > guessed) == metric.higher_is_better


@each_metric
def test_any_split_and_an_empty_batch_in_it(name):
    whole = fed(name).compute()
    for size in (1, 7, 32):
        metric = fed(name, size=size)
        _, (output, target) = METRICS[name]
        metric.update(output[:0], target[:0])
        close(metric.compute(), whole)


@each_metric
def test_names(name):
    metric = METRICS[name][0]()
    assert metric.name == name.split(" ")[0]
    assert isinstance(metric, Metric)


@each_metric
def test_reset_forgets_and_compute_does_not(name):
    metric = fed(name)
    first = metric.compute()
    close(metric.compute(), first)
    metric.reset()
    close(metric.compute(), METRICS[name][0]().compute())
    metric.update(*METRICS[name][1])
    close(metric.compute(), first)


@each_metric
def test_a_state_goes_through_a_file(name):
    metric, other = fed(name, stop=25), METRICS[name][0]()
    state, file = metric.state_dict(), io.BytesIO()
    metric.update(*METRICS[name][1])  # the state was a copy
    torch.save(state, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other.load_state_dict(state)
    close(other.compute(), fed(name, stop=25).compute())
    output, target = METRICS[name][1]
    other.update(output[25:], target[25:])
    close(other.compute(), fed(name).compute())
    with pytest.raises(ValueError, match="expected a state of "):
        other.load_state_dict({"nothing": torch.zeros(())})


@each_metric
def test_copies_are_of_their_own(name):
    metric = fed(name, stop=25)
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        metric.update(*METRICS[name][1])
        close(other.compute(), fed(name, stop=25).compute())


@each_metric
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_computed_as_their_values(name, dtype):
    make, (output, target) = METRICS[name]
    metric, wide = make(), make()
    metric.update(output.to(dtype), target)
    wide.update(output.to(dtype).float(), target)
    close(metric.compute(), wide.compute())


@each_metric
def test_update_never_reads_a_value_back(name):
    make, (output, target) = METRICS[name]
    metric = make().to("meta")  # where there are no values to read
    for _ in range(2):
        metric.update(output.to("meta"), target.to("meta"))
    assert all(value.device.type == "meta" for value in metric.state_dict().values())
    assert repr(metric).startswith(type(metric).__name__)


@each_metric
def test_inference_mode_and_then_training(name):
    metric = METRICS[name][0]()
    output, target = METRICS[name][1]
    with torch.inference_mode():
        metric.update(output.clone(), target)
        inside = metric.compute()
    close(inside, fed(name).compute())
    metric.reset()
    metric.update(output.clone().requires_grad_(), target)
    close(metric.compute(), inside)
    assert not any(value.requires_grad for value in metric.state_dict().values())


class Seen(Callback):
    """Keeps what `compute` returns at the end of a loader."""

    def on_loader_end(self, state):
        self.values = [metric.compute() for metric in state.metrics]


@each_metric
def test_in_a_runner(name):
    make, (output, target) = METRICS[name]
    batches = list(zip(output.split(16), target.split(16), strict=True))
    model = nn.Identity()
    model.scale = nn.Parameter(torch.ones(()))
    seen = Seen()
    runner = Runner(
        model, torch.optim.SGD(model.parameters(), lr=0.1), lambda output, _: model.scale * 0, [make()], [seen]
    )
    row = runner.fit(batches, val_loader=batches)[-1] | runner.evaluate(batches)
    expected = fed(name).compute()
    close(seen.values[0], expected)
    named = expected if isinstance(expected, dict) else {make().name: expected}
    for key, value in named.items():
        for part in ("train", "val"):
            if value.numel() == 1:
                assert row[f"{part}/{key}"] == pytest.approx(float(value), rel=1e-6)
            else:
                assert f"{part}/{key}" not in row


def reduced(rank, folder):
    values = {}
    for name in METRICS:
        for split in (0, 17):  # process 0 has the first samples, process 1 the others
            metric = fed(name, *((0, split) if rank == 0 else (split, 40)))
            metric.all_reduce()
            values[f"{name} {split}"] = metric.compute()
        metric = METRICS[name][0]()
        metric.all_reduce()
        values[f"{name} none"] = metric.compute()
    return values


@pytest.mark.timeout(120)
def test_two_processes_of_which_one_or_both_are_empty(tmp_path):
    for values in in_two_processes(reduced, tmp_path):
        for name in METRICS:
            whole = fed(name).compute()
            close(values[f"{name} 0"], whole)
            close(values[f"{name} 17"], whole)
            close(values[f"{name} none"], METRICS[name][0]().compute())


@each_metric
def test_all_reduce_of_one_process_changes_nothing(name):
    metric = fed(name)
    metric.all_reduce()
    close(metric.compute(), fed(name).compute())


def test_sums_travel_in_one_message_per_dtype(monkeypatch):
    sent = []
    monkeypatch.setattr("fit_metrics.base.has_process_group", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda packed: sent.append(packed.dtype))
    fed("PSNR").all_reduce()
    assert sorted(sent, key=str) == [torch.float64, torch.int64]
