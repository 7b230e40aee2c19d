"""The same data gives the same numbers on one process and on two. One script serves both."""

import pytest
import torch
from fit_callbacks import EarlyStopping, GradientClipping, ModelEma, ReduceLROnPlateau
from fit_core import Callback, Runner
from fit_distributed import launch, parallel, rank, shard, world_size
from fit_metrics import Accuracy
from forked import forked
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

pytestmark = pytest.mark.timeout(180)


def samples(count, dtype):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 6, generator=generator, dtype=torch.float64).to(dtype)
    return TensorDataset(inputs, torch.randint(3, (count,), generator=generator))


def network(dtype):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)


CASES = {
    "float32": {},
    "float64": {"dtype": torch.float64},
    "accumulation": {"dtype": torch.float64, "accumulate_steps": 4},
    "clipping": {"dtype": torch.float64, "callbacks": [lambda: GradientClipping(0.1)]},
    "average": {"dtype": torch.float64, "callbacks": [lambda: ModelEma(0.9)]},
    "early stopping": {
        "dtype": torch.float64,
        "callbacks": [lambda: EarlyStopping(patience=3), lambda: ReduceLROnPlateau(patience=0, factor=0.5)],
        "epochs": 30,
        "lr": 1.0,
    },
    "bfloat16": {"use_bf16": True},
    "torchmetrics": {"dtype": torch.float64, "torchmetrics": True},
    "compiled inside": {"dtype": torch.float64, "compiled": "inside"},
    "compiled outside": {"dtype": torch.float64, "compiled": "outside", "accumulate_steps": 2},
}


def train(dtype=torch.float32, callbacks=(), epochs=3, lr=0.1, torchmetrics=False, compiled=None, **options):
    """A run of which the global batch is 8, whatever the number of processes."""
    model = network(dtype)
    model = parallel(torch.compile(model, backend="eager") if compiled == "inside" else model)
    reductions = []
    if isinstance(model, DistributedDataParallel):
        model.register_comm_hook(None, lambda state, bucket: reductions.append(1) or allreduce_hook(None, bucket))
    if compiled == "outside":
        model = torch.compile(model, backend="eager")
    metrics = [Accuracy()]
    if torchmetrics:
        metrics.append(__import__("torchmetrics").classification.MulticlassAccuracy(3, average="micro"))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    runner = Runner(model, optimizer, nn.CrossEntropyLoss(), metrics, [make() for make in callbacks], **options)
    torch.manual_seed(5)
    train_loader = DataLoader(samples(44, dtype), batch_size=8 // world_size(), shuffle=True)
    val_loader = DataLoader(samples(17, dtype), batch_size=3)
    history = runner.fit(shard(train_loader), epochs=epochs, val_loader=shard(val_loader))
    return (
        runner.state.state_dict()["model"],
        history,
        len(reductions),
        runner.state.global_step,
        optimizer.param_groups[0]["lr"],
    )


def train_all():
    return {name: train(**case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def on_ranks():
    """The results of both processes, started once for all tests."""
    pytest.importorskip("torchmetrics")
    with forked():
        return launch(everything, nproc=2, backend="gloo", timeout=120)


@pytest.fixture(scope="module")
def runs(on_ranks):
    one, two = (results["training"] for results in on_ranks)
    return launch(train_all, nproc=1)[0], one, two


# Rounding of sums over 8 samples and over two times 4 differs: bfloat16 has 8 bits.
TOLERANCE = {"float32": 1e-6, "bfloat16": 1e-2}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_with_the_same_global_batch(runs, case):
    (weights, history, _, steps, lr), *both = (run[case] for run in runs)
    tolerance = TOLERANCE.get(case, 1e-12)
    for their_weights, their_history, reductions, their_steps, their_lr in both:
        assert set(their_weights) == {"0.weight", "0.bias", "2.weight", "2.bias"}
        for name, value in weights.items():
            torch.testing.assert_close(their_weights[name], value, rtol=0, atol=tolerance)
        assert len(their_history) == len(history)
        for row, expected in zip(their_history, history, strict=True):
            assert row == pytest.approx(expected, rel=max(tolerance, 1e-12))
            if case not in TOLERANCE:
                assert row["val/Acc@1"] == expected["val/Acc@1"]
                assert row["train/Acc@1"] == expected["train/Acc@1"]
        assert (their_steps, their_lr) == (steps, lr)
        assert reductions == steps  # One bucket a step, none in the batches before an accumulated one.
    assert both[0][1] == both[1][1]  # All decide by the same numbers, to the bit.


def test_the_early_stop_was_early_and_the_learning_rate_fell(runs):
    _, history, _, _, lr = runs[0]["early stopping"]
    assert 3 < len(history) < 30
    assert lr < 1.0


def evaluate_all():
    results = []
    for count in (1, 2, 3, 5, 17, 103):
        for batch in (1, 8):
            model = nn.Sequential(network(torch.float64), nn.BatchNorm1d(3).double())
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            runner = Runner(parallel(model), optimizer, nn.CrossEntropyLoss(), [Accuracy()])
            loader = shard(DataLoader(samples(count, torch.float64), batch_size=batch))
            results.append((runner.evaluate(loader), len(loader)))
    return results


def test_evaluation_counts_each_sample_once_also_on_ranks_without_a_batch(on_ranks):
    alone = launch(evaluate_all, nproc=1)[0]
    first, second = (results["evaluation"] for results in on_ranks)
    assert second[0][1] == 0
    for mine, theirs, (expected, _) in zip(first, second, alone, strict=True):
        assert mine[0] == theirs[0]
        assert mine[0]["val/Acc@1"] == expected["val/Acc@1"]
        assert mine[0]["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-12)


def unequal():
    model = parallel(network(torch.float32))
    seen = []

    class Seen(Callback):
        def on_batch_begin(self, state):
            seen.append(state.batch_idx)

    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), callbacks=[Seen()])
    try:
        runner.fit(shard(DataLoader(samples(9, torch.float32), batch_size=1)))
    except ValueError as error:
        return str(error), len(seen)


def buffers():
    """After training both have the same. In eval mode one process may call the model without the other."""
    model = parallel(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    for _ in range(2):
        model(torch.randn(2, 4) + rank()).sum().backward()
    trained = model.module[1].running_mean.clone()
    model.module[1].running_mean.fill_(rank())
    model.eval()
    for _ in range(3 * rank()):
        model(torch.randn(2, 4))
        with torch.no_grad():
            model(torch.randn(2, 4))
    compiled = torch.compile(model, backend="eager")
    if rank():
        compiled.eval()(torch.randn(2, 4))
    return float(model.module[1].running_mean[0]), trained


def everything():
    return {"training": train_all(), "evaluation": evaluate_all(), "separate": (unequal(), buffers())}


def test_unequal_loaders_are_refused_and_evaluation_exchanges_nothing(on_ranks):
    results = [result["separate"] for result in on_ranks]
    for (message, steps), _ in results:
        assert "as many training batches on every process, got rank 0: 5, rank 1: 4, " in message
        assert steps == 0
    (first, trained), (second, their_trained) = (result[1] for result in results)
    assert (first, second) == (0.0, 1.0)
    assert torch.equal(trained, their_trained)
