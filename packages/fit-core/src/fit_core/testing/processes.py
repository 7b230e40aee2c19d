"""Check callbacks and metrics in two real processes."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch import nn

from .callbacks import CallbackCase
from .metrics import MetricCase
from .values import as_tensor, close, flat

__all__ = ["check_measures", "check_ranks", "in_two_processes", "measure_on_rank", "train_on_rank"]


def in_two_processes(function: Callable[[int, Path], Any], folder: str | os.PathLike[str]) -> list[Any]:
    """Call `function(rank, folder)` in two processes of a gloo group, and return the result of each.

    Define the function at the top of a module, since new processes import it. Its result is saved with torch. Starting
    the processes takes seconds, so let one function try everything you have. The line
    `multiprocessing.set_forkserver_preload(["torch._dynamo"])` in conftest.py makes all but the first start quick:

    ```python
    def on_a_rank(rank, folder):
        return {"mine": train_on_rank(CASE, rank, folder), "metric": measure_on_rank(METRIC, rank)}


    def test_two_processes(tmp_path):
        first, second = in_two_processes(on_a_rank, tmp_path)
        check_ranks(first["mine"], second["mine"])
        check_measures(METRIC, first["metric"], second["metric"])
    ```
    """
    folder = Path(folder)
    start: Any = mp.start_processes  # type: ignore[attr-defined]
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"  # on Windows
    of_workers = multiprocessing.get_start_method(allow_none=True)
    (folder / "store").unlink(missing_ok=True)  # An earlier call has left its addresses there.
    start(_on_a_process, (function, folder, of_workers), nprocs=2, start_method=method)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def _on_a_process(rank: int, function: Callable[[int, Path], Any], folder: Path, of_workers: str | None) -> None:
    multiprocessing.set_start_method(of_workers, force=True)  # Python sets that of this process, which is slow.
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save(function(rank, folder), folder / f"{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # gloo and DistributedDataParallel sometimes abort when an interpreter ends, so this one does not


def train_on_rank(case: CallbackCase, rank: int, folder: Path) -> dict[str, Any]:
    """Train on this rank's own data. Ranks validate on different numbers of batches. For `in_two_processes`."""
    folder, printed = folder / f"files of rank {rank}", io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(case.network(), **case.ddp_options)
        runner = case.runner(case.make(folder), model, accumulate_steps=2)
        history = runner.fit(case.batches(rank), epochs=3, val_loader=case.batches(5)[: 2 * rank + 1])
    return {
        "weights": [parameter.detach() for parameter in model.parameters()],
        "epochs": len(history),
        "steps": runner.state.global_step,
        "printed": printed.getvalue(),
        "files": [str(path.relative_to(folder)) for path in folder.rglob("*")],
    }


def check_ranks(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Check that two ranks end alike, and that only the first has printed and written."""
    for key in ("weights", "epochs", "steps"):
        assert flat(first[key]) == flat(second[key]), f"the ranks differ in {key}"
    assert not second["printed"], f"rank 1 has printed {second['printed']!r}"
    assert not second["files"], f"rank 1 has written {second['files']}"


def measure_on_rank(case: MetricCase, rank: int) -> list[torch.Tensor]:
    """Return the metric's values over two ranks, of which the first has 0, 17 or 40 of the 40 samples.

    For `in_two_processes`.
    """
    values = []
    for size in (0, 17, 40):
        runner, metric = case.runner()
        batches = [batch for batch in case.batches(size, 40 - size)[rank : rank + 1] if len(batch[0])]
        runner.evaluate(batches)
        values.append(as_tensor(metric.compute()))
    return values


def check_measures(case: MetricCase, first: list[torch.Tensor], second: list[torch.Tensor]) -> None:
    """Check that each rank has the value of all samples, however they were split."""
    for value in (*first, *second):
        close(value, case.whole())
