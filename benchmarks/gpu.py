"""Compare the Runner with a hand-written loop on an accelerator: ``python benchmarks/gpu.py``.

Three models (a small MLP, where the host is the limit; a residual network; a transformer) in fp32, bf16 and fp16. Both
train in turn, in blocks of equal length with a wait for the device at the end of each; the ratio is the median over the
blocks. ``--device cpu`` tries the code where there is no accelerator, on small shapes.
"""

import argparse
import contextlib
import statistics
import time

import torch
from fit_core import Runner
from torch import nn
from torch.nn import functional

BLOCKS = 11


class Bottleneck(nn.Module):
    """A block of :class:`Residual`."""

    def __init__(self, width, out, stride):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(width, out // 4, 1, bias=False), nn.BatchNorm2d(out // 4), nn.ReLU()),
            *(nn.Conv2d(out // 4, out // 4, 3, stride, 1, bias=False), nn.BatchNorm2d(out // 4), nn.ReLU()),
            *(nn.Conv2d(out // 4, out, 1, bias=False), nn.BatchNorm2d(out)),
        )
        alike = width == out and stride == 1
        self.skip = nn.Identity() if alike else nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, input):
        return functional.relu(self.body(input) + self.skip(input))


class Residual(nn.Module):
    """Stages of bottleneck blocks, as in ResNet-50: ``widths`` and numbers of blocks of each stage."""

    def __init__(self, widths, blocks):
        super().__init__()
        layers = [nn.Conv2d(3, widths[0] // 4, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)]
        width = widths[0] // 4
        for stage, (out, number) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(number):
                layers.append(Bottleneck(width, out, 2 if stage and not block else 1))
                width = out
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 100))

    def forward(self, input):
        return self.layers(input)


class Transformer(nn.Module):
    """Six encoder layers over tokens, and a class for the sequence."""

    def __init__(self, width):
        super().__init__()
        self.embedding = nn.Embedding(1000, width)
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(width, 100)

    def forward(self, tokens):
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


def works(small):
    """Name, model, and a batch of inputs; targets are of 100 classes."""
    yield (
        "MLP 32-64-100, batch 32",
        nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 100)),
        torch.randn(32, 32),
    )
    if small:
        yield "residual network", Residual((32, 64), (1, 1)), torch.randn(2, 3, 32, 32)
        yield "transformer", Transformer(32), torch.randint(1000, (2, 16))
    else:
        yield "ResNet-50-like, batch 64", Residual((256, 512, 1024, 2048), (3, 4, 6, 3)), torch.randn(64, 3, 224, 224)
        yield "transformer 6x512, batch 32x128", Transformer(512), torch.randint(1000, (32, 128))


def by_hand(model, optimizer, criterion, dtype, device):
    """The loop: a function of a loader."""
    scaler = torch.amp.GradScaler(device.type) if dtype == torch.float16 else None

    def epoch(loader):
        total = torch.zeros((), dtype=torch.float64, device=device)
        for input, target in loader:
            input, target = input.to(device, non_blocking=True), target.to(device, non_blocking=True)
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext():
                loss = criterion(model(input), target)
            if scaler:
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                optimizer.step()
            total.add_(loss.detach(), alpha=len(target))
        return total.item()

    return epoch


def measure(model, input, dtype, device, batches):
    """Return the seconds per step of the Runner and of the loop, and the ratios of the blocks."""
    target = torch.randint(100, (len(input),))
    loader = [(input, target)] * batches
    if device.type != "cpu":
        loader = [tuple(tensor.pin_memory() for tensor in pair) for pair in loader[:1]] * batches
    model.to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    runner = Runner(model, optimizer, criterion, use_fp16=dtype == torch.float16, use_bf16=dtype == torch.bfloat16)
    contestants = {"runner": runner.fit, "hand": by_hand(model, optimizer, criterion, dtype, device)}
    rows = []
    for block in range(BLOCKS + 1):
        row = {}
        for name in sorted(contestants, reverse=block % 2):
            begin = time.perf_counter()
            contestants[name](loader)
            if device.type != "cpu":
                torch.accelerator.synchronize()
            row[name] = (time.perf_counter() - begin) / batches
        rows.append(row)
    rows = rows[1:]  # the first one warms up
    return [statistics.median(row[name] for row in rows) for name in ("runner", "hand")], sorted(
        row["runner"] / row["hand"] for row in rows
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default=None, help="default: the accelerator of this machine")
    parser.add_argument("--batches", type=int, default=100, help="in a block (default: 100)")
    arguments = parser.parse_args()
    device = torch.device(arguments.device) if arguments.device else torch.accelerator.current_accelerator()
    if device is None:
        parser.exit(1, "there is no accelerator on this machine: --device cpu tries the code on small shapes\n")
    name = torch.get_device_module(device).get_device_name() if device.type == "cuda" else device.type
    print(f"{name}, torch {torch.__version__}")
    print(f"{'':<34}{'':<10}{'ms/step':>9}{'by hand':>9}{'ratio':>7}{'range':>14}")
    for dtype in (None, torch.bfloat16, torch.float16):
        torch.manual_seed(0)
        for work, model, input in works(small=device.type == "cpu"):
            (ours, theirs), ratios = measure(model, input, dtype, device, arguments.batches)
            label = str(dtype or torch.float32).removeprefix("torch.")
            print(
                f"{work:<34}{label:<10}{1e3 * ours:>9.3f}{1e3 * theirs:>9.3f}"
                f"{statistics.median(ratios):>7.3f}{ratios[0]:>8.2f}-{ratios[-1]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
