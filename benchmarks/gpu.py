"""Compare the Runner, also with CompiledStep, with a hand-written loop: `python benchmarks/gpu.py`.

Three models in fp32, bf16 and fp16: a small MLP, where the host is the limit, a residual network and a transformer.
All train in turn, in blocks of equal length with a wait for the device at the end of each. The ratio is the median over
the blocks. `--device cpu` tries the code where there is no accelerator, on small shapes.
"""

import argparse
import contextlib
import copy
import io
import statistics
import time

import torch
from fit_callbacks import CompiledStep
from fit_core import Callback, Runner
from torch import nn
from torch.nn import functional

BLOCKS = 11


class Bottleneck(nn.Module):
    """A block of `Residual`."""

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
    """Stages of bottleneck blocks, as in ResNet-50: `widths` and numbers of blocks of each stage."""

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
    """Yield name, model, and a batch of inputs. Targets are of 100 classes."""
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


def now(device):
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def timed(train, device):
    """Return a function that trains an epoch and returns its seconds."""

    def run(loader):
        begin = now(device)
        train(loader)
        return now(device) - begin

    return run


class SecondEpoch(Callback):
    """Measures the last epoch, without the warmup and the capture, which the first one has."""

    def __init__(self, device):
        self.device = device

    def on_epoch_begin(self, state):
        self.begin = now(self.device)

    def on_epoch_end(self, state):
        self.seconds = now(self.device) - self.begin


def measure(model, input, dtype, device, batches):
    """Return the seconds per step of each contestant, and its ratios to the hand-written loop in each block."""
    target = torch.randint(100, (len(input),))
    loader = [(input, target)] * batches
    if device.type != "cpu":
        loader = [tuple(tensor.pin_memory() for tensor in pair) for pair in loader[:1]] * batches
    model.to(device)
    criterion = nn.CrossEntropyLoss()
    half = {"use_fp16": dtype == torch.float16, "use_bf16": dtype == torch.bfloat16}

    def optimizer_of(model):  # fp16 waits in each step without a fused one, and cannot be captured
        return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=dtype == torch.float16 or None)

    optimizer = optimizer_of(model)
    runner = Runner(model, optimizer, criterion, **half)
    contestants = {
        "runner": timed(runner.fit, device),
        "hand": timed(by_hand(model, optimizer, criterion, dtype, device), device),
    }
    other = copy.deepcopy(model)
    clock = SecondEpoch(device)
    captured = Runner(other, optimizer_of(other), criterion, callbacks=[CompiledStep(), clock], **half)

    def compiled(loader):
        with contextlib.redirect_stdout(io.StringIO()):
            captured.fit(loader, epochs=2)
        return clock.seconds

    contestants["compiled"] = compiled
    rows = []
    for block in range(BLOCKS + 1):
        row = {}
        for name in sorted(contestants, reverse=block % 2):
            row[name] = contestants[name](loader) / batches
        rows.append(row)
    rows = rows[1:]  # the first one warms up
    return {
        name: (statistics.median(row[name] for row in rows), sorted(row[name] / row["hand"] for row in rows))
        for name in contestants
    }


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
    print(f"{'':<34}{'':<10}{'':<10}{'ms/step':>9}{'ratio':>7}{'range':>14}")
    if CompiledStep is None:
        print("CompiledStep was not run: this fit-callbacks does not have it")
    for dtype in (None, torch.bfloat16, torch.float16):
        torch.manual_seed(0)
        for work, model, input in works(small=device.type == "cpu"):
            label = str(dtype or torch.float32).removeprefix("torch.")
            for name, (seconds, ratios) in measure(model, input, dtype, device, arguments.batches).items():
                print(
                    f"{work:<34}{label:<10}{name:<10}{1e3 * seconds:>9.3f}"
                    f"{statistics.median(ratios):>7.3f}{ratios[0]:>8.2f}-{ratios[-1]:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
