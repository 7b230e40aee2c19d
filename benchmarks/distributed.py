"""Compare the Runner with a hand-written loop over DistributedDataParallel on one and two processes.

`python benchmarks/distributed.py` prints samples per second of both, and the ratio: 1.00 is equally fast. They
take turns, the first round is not counted, and of the others the fastest counts. On accelerators it runs on those.
"""

import argparse
import time
from collections.abc import Callable

import torch
from fit_core import Runner
from fit_distributed import barrier, device, launch, parallel, shard, world_size
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

SAMPLES, BATCH = 8192, 64


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def by_hand(dataset: TensorDataset) -> Callable[[], object]:
    """One epoch of the loop that everybody writes, with the mean loss over all processes."""
    here = device()
    model = network().to(here)
    sampler = None
    if world_size() > 1:
        model = DistributedDataParallel(model, device_ids=None if here.type == "cpu" else [here])
        sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler, shuffle=sampler is None)
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.01), nn.CrossEntropyLoss()

    def epoch() -> object:
        total = torch.zeros(2, device=here)
        model.train()
        for input, target in loader:
            input, target = input.to(here, non_blocking=True), target.to(here, non_blocking=True)
            optimizer.zero_grad()
            loss = criterion(model(input), target)
            loss.backward()
            optimizer.step()
            total += torch.stack([loss.detach() * len(input), torch.full_like(loss, len(input))])
        if world_size() > 1:
            torch.distributed.all_reduce(total)
        return float(total[0] / total[1])

    return epoch


def by_runner(dataset: TensorDataset) -> Callable[[], object]:
    """The same by the Runner."""
    model = parallel(network())
    loader = shard(DataLoader(dataset, batch_size=BATCH, shuffle=True))
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.01), nn.CrossEntropyLoss())
    return lambda: runner.fit(loader)


def measure(rounds: int) -> tuple[float, float]:
    """Return the samples per second of all processes, with the loop and with the Runner."""
    dataset = TensorDataset(torch.randn(SAMPLES, 256), torch.randint(10, (SAMPLES,)))
    epochs = [by_hand(dataset), by_runner(dataset)]
    best = [float("inf")] * 2
    for number in range(rounds + 1):
        for which, epoch in enumerate(epochs):
            barrier()
            begin = time.perf_counter()
            epoch()  # Both end with a number on the host: the device is done.
            if number:
                best[which] = min(best[which], time.perf_counter() - begin)
    return SAMPLES / best[0], SAMPLES / best[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="epochs of each that count (default: 10)")
    parser.add_argument("--nproc", type=int, nargs="+", default=[1, 2], help="numbers of processes (default: 1 2)")
    arguments = parser.parse_args()
    for nproc in arguments.nproc:
        hand, runner = launch(measure, arguments.rounds, nproc=nproc)[0]
        print(f"nproc {nproc}: by hand {hand:,.0f} samples/s, Runner {runner:,.0f}, ratio {runner / hand:.2f}")


if __name__ == "__main__":
    main()
