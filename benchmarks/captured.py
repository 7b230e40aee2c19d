"""Compare CompiledStep with a hand-written loop on a CUDA GPU: `python benchmarks/captured.py`.

A small MLP, where the host is the limit, with and without what runs in a step (metrics, clipping, average, bf16, fp16,
accumulation), against the same step captured by hand and against JAX. Then a residual network and a transformer in
bf16. All contestants take turns; a ratio is taken within a round, to the plain loop or the ordinary Runner.
"""

import argparse
import contextlib
import importlib
import io
import statistics
import time

import torch
from fit_callbacks import CompiledStep, GradientClipping, ModelEma
from fit_core import Callback, Runner
from fit_metrics import Accuracy
from torch import nn
from torch.nn import functional

BATCHES = 200


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10)).cuda()


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, **options)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), 1e-4, fused=True)


def by_hand(data, make=sgd):
    """The plain loop, its mean loss kept on the device."""
    model, criterion = mlp(), nn.CrossEntropyLoss()
    optimizer = make(model)

    def epoch():
        total = torch.zeros((), device="cuda")
        for input, target in data:
            optimizer.zero_grad()
            loss = criterion(model(input.cuda(non_blocking=True)), target.cuda(non_blocking=True))
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return total.item()

    return epoch


def captured_by_hand(data):
    """The whole step as a CUDA graph, without a library."""
    model, criterion = mlp(), nn.CrossEntropyLoss()
    optimizer = sgd(model, fused=True)
    input, target = (tensor.cuda() for tensor in data[0])
    total = torch.zeros((), device="cuda")

    def step():
        optimizer.zero_grad()
        loss = criterion(model(input), target)
        loss.backward()
        optimizer.step()
        total.add_(loss.detach())

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def epoch():
        total.zero_()
        for new_input, new_target in data:
            input.copy_(new_input, non_blocking=True)
            target.copy_(new_target, non_blocking=True)
            graph.replay()
        return total.item()

    return epoch


def jax_step(data, scan=False):
    """The step in JAX, jitted, or the epoch as one scan."""
    jax, optax, jnp = (importlib.import_module(name) for name in ("jax", "optax", "jax.numpy"))
    keys = jax.random.split(jax.random.key(0), 2)
    weights = {
        "a": (jax.random.normal(keys[0], (32, 64)) * 0.1, jnp.zeros(64)),
        "b": (jax.random.normal(keys[1], (64, 10)) * 0.1, jnp.zeros(10)),
    }
    tx = optax.sgd(0.01, momentum=0.9)
    batches = [(jnp.asarray(x.cpu().numpy()), jnp.asarray(y.cpu().numpy())) for x, y in data]

    def loss_of(weights, x, y):
        hidden = jax.nn.relu(x @ weights["a"][0] + weights["a"][1])
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ weights["b"][0] + weights["b"][1], y).mean()

    def step(carry, batch):
        weights, state, total = carry
        loss, gradients = jax.value_and_grad(loss_of)(weights, *batch)
        updates, state = tx.update(gradients, state)
        return (optax.apply_updates(weights, updates), state, total + loss), None

    jitted = jax.jit(lambda carry, batch: step(carry, batch)[0], donate_argnums=0)
    carry = weights, tx.init(weights), jnp.zeros(())
    stacked = tuple(jnp.stack(parts) for parts in zip(*batches, strict=True))
    scanned = jax.jit(lambda carry: jax.lax.scan(step, carry, stacked)[0])

    def epoch():
        nonlocal carry
        if scan:
            carry = scanned(carry)
        else:
            for batch in batches:
                carry = jitted(carry, batch)
        return float(carry[2])

    return epoch


class Mark(Callback):
    """Times each epoch, with a wait for the device at its end."""

    def __init__(self):
        self.times = []

    def on_epoch_begin(self, state):
        torch.cuda.synchronize()
        self.begin = time.perf_counter()

    def on_epoch_end(self, state):
        torch.cuda.synchronize()
        self.times.append(time.perf_counter() - self.begin)


def fit(data, callbacks=(), metrics=(), make=sgd, model=None, **options):
    """The Runner: a function that runs some epochs, the first of which records the graph, and returns their times."""
    model = model or mlp()
    mark = Mark()
    runner = Runner(model, make(model), nn.CrossEntropyLoss(), list(metrics), callbacks=[*callbacks, mark], **options)

    def run(epochs):
        mark.times = []
        with contextlib.redirect_stdout(io.StringIO()) as out:
            runner.fit(data, epochs=runner.state.epoch + epochs)
        if any(isinstance(callback, CompiledStep) for callback in callbacks) and "captured" not in out.getvalue():
            raise RuntimeError(out.getvalue().strip())
        return mark.times

    return run


def loop(epoch):
    """The same for a function that runs an epoch."""

    def run(epochs):
        times = []
        for _ in range(epochs):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            epoch()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begin)
        return times

    return run


def compare(contestants, rounds, steps):
    """Print microseconds per step, and the ratio to the first contestant: the median of the rounds."""
    made, seen = {}, {}
    for name, make in contestants.items():
        try:
            made[name] = make()
            made[name](2)
        except Exception as error:
            torch.cuda.synchronize()
            print(f"{name:<52} not run: {type(error).__name__}: {str(error)[:150]}", flush=True)
            made.pop(name, None)
    for _ in range(rounds):
        for name, run in made.items():
            seen.setdefault(name, []).append(statistics.median(run(4)[1:]) / steps)
    first = next(iter(seen.values()), [])
    for name, times in seen.items():
        ratios = sorted(a / b for a, b in zip(times, first, strict=True))
        middle = statistics.median(ratios)
        print(
            f"{name:<52}{1e6 * statistics.median(times):>9.1f}{middle:>8.3f}{ratios[0]:>9.3f}-{ratios[-1]:.3f}",
            flush=True,
        )


def compiled(data, *callbacks, **options):
    return fit(data, [*callbacks, CompiledStep()], **options)


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width, out, stride=1):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()),
            *(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)),
        )
        self.skip = nn.Identity() if width == out else nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, input):
        return functional.relu(self.body(input) + self.skip(input))


def residual():
    """Like ResNet-18, for images of 32x32."""
    torch.manual_seed(0)
    sizes = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1)]
    blocks = [Block(*size) for size in [*sizes, (256, 512, 2), (512, 512, 1)]]
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)
    return nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1), *blocks, *head).cuda().to(memory_format=torch.channels_last)


class Transformer(nn.Module):
    """Six layers of width 384 over tokens, with a score for each."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(384, 6, 1536, 0.0, batch_first=True)
        self.embedding = nn.Embedding(512, 384)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.head = nn.Linear(384, 512)

    def forward(self, tokens):
        return self.head(self.encoder(self.embedding(tokens))).transpose(1, 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'MLP 32-64-10, batch 32':<52}{'us/step':>9}{'ratio':>8}{'range':>15}")
    generator = torch.Generator().manual_seed(1)
    pinned = [
        (
            torch.randn(32, 32, generator=generator).pin_memory(),
            torch.randint(10, (32,), generator=generator).pin_memory(),
        )
        for _ in range(BATCHES)
    ]
    data = [(x.cuda(), y.cuda()) for x, y in pinned]
    both = {"metrics": [Accuracy(1), Accuracy(5)]}

    def extras():
        return ModelEma(0.999), GradientClipping(1.0)

    contestants = {
        "plain loop": lambda: loop(by_hand(data)),
        "plain loop, fused optimizer": lambda: loop(by_hand(data, lambda m: sgd(m, fused=True))),
        "Runner": lambda: fit(data),
        "Runner, accuracies, average, clipping": lambda: fit(data, extras(), **both),
        "CompiledStep": lambda: compiled(data),
        "CompiledStep, batches in pinned memory": lambda: compiled(pinned),
        "CompiledStep, AdamW": lambda: compiled(data, make=adamw),
        "CompiledStep, bf16": lambda: compiled(data, use_bf16=True),
        "CompiledStep, fp16": lambda: compiled(data, use_fp16=True),
        "CompiledStep, accumulate_steps=2": lambda: compiled(data, accumulate_steps=2),
        "CompiledStep, clipping": lambda: compiled(data, GradientClipping(1.0)),
        "CompiledStep, average": lambda: compiled(data, ModelEma(0.999)),
        "CompiledStep, Accuracy(1), Accuracy(5)": lambda: compiled(data, **both),
        "CompiledStep, Accuracy(1, 5)": lambda: compiled(data, metrics=[Accuracy(1, 5)]),
        "CompiledStep, accuracies, average, clipping": lambda: compiled(data, *extras(), **both),
        "captured by hand": lambda: loop(captured_by_hand(data)),
        "JAX, jit": lambda: loop(jax_step(data)),
        "JAX, scan over the epoch": lambda: loop(jax_step(data, scan=True)),
    }
    compare(contestants, rounds, BATCHES)
    images = torch.randn(128, 3, 32, 32, device="cuda").to(memory_format=torch.channels_last)
    works = {
        "like ResNet-18, 32x32, batch 128, bf16": (residual, (images, torch.randint(10, (128,), device="cuda"))),
        "transformer 6x384, 16x128 tokens, bf16": (
            lambda: Transformer().cuda(),
            (torch.randint(512, (16, 128), device="cuda"), torch.randint(512, (16, 128), device="cuda")),
        ),
    }
    for name, (make_model, batch) in works.items():
        both_ways = {
            f"{name}, Runner": lambda m=make_model, b=batch: fit([b] * 20, make=adamw, model=m(), use_bf16=True),
            f"{name}, CompiledStep": lambda m=make_model, b=batch: compiled(
                [b] * 20, make=adamw, model=m(), use_bf16=True
            ),
        }
        compare(both_ways, max(3, rounds // 2), 20)


if __name__ == "__main__":
    main()
