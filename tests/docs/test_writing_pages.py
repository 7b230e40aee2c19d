"""Check what docs/writing shows: its callbacks and metrics keep the protocol, and its steps do what the page says."""

import functools
import re
import warnings
from pathlib import Path

import pytest
import torch
from fit_core import Callback
from fit_core.testing import (
    CALLBACK_CHECKS,
    METRIC_CHECKS,
    CallbackCase,
    MetricCase,
    check_measures,
    check_ranks,
    in_two_processes,
    measure_on_rank,
    train_on_rank,
)
from fit_core.testing.runners import Snapshots
from fit_core.testing.values import flat

ROOT = Path(__file__).parents[2]


@functools.cache
def names_of(page):
    """Run the code of a page, and return what it has defined."""
    text, names = (ROOT / "docs" / "writing" / page).read_text(), {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(block, names)
    return names


LossSpikes = names_of("callback.md")["LossSpikes"]
CALLBACK = CallbackCase(lambda folder: [LossSpikes(1.01)])
STEP_TIME = CallbackCase(lambda folder: [names_of("step.md")["StepTime"]()], clock=("step_ms",))

METRIC_PAGE, G = names_of("metric.md"), torch.Generator().manual_seed(0)
SCORES, CLASSES = torch.randn(40, 4, generator=G), torch.arange(40) % 4
METRICS = {
    "RelativeError": MetricCase(METRIC_PAGE["RelativeError"], SCORES, SCORES + 1),
    "GeometricMean": MetricCase(lambda: METRIC_PAGE["GeometricMean"](4), SCORES, CLASSES),
}


@pytest.mark.parametrize("check", CALLBACK_CHECKS)
@pytest.mark.parametrize("case", [CALLBACK, STEP_TIME], ids=["LossSpikes", "StepTime"])
def test_the_callbacks_keep_the_protocol(case, check, tmp_path):
    check(case, tmp_path)


@pytest.mark.parametrize("check", METRIC_CHECKS)
@pytest.mark.parametrize("name", METRICS)
def test_the_metrics_keep_the_protocol(name, check, tmp_path):
    check(METRICS[name], tmp_path)


def on_a_rank(rank, folder):
    measured = {name: measure_on_rank(case, rank) for name, case in METRICS.items()}
    return {"callback": train_on_rank(CALLBACK, rank, folder), **measured}


def test_two_processes(tmp_path):
    first, second = in_two_processes(on_a_rank, tmp_path)
    check_ranks(first["callback"], second["callback"])
    for name, case in METRICS.items():
        check_measures(case, first[name], second[name])


class SeesHooks(Callback):
    """Counts the hooks that a step of the user's own has to call."""

    def on_begin(self, state):
        self.backward, self.stepped = 0, []

    def on_after_backward(self, state):
        self.backward += 1

    def on_before_step(self, state):
        self.stepped.append(state.optimizer)
        assert all(p.grad.isfinite().all() for group in state.optimizer.param_groups for p in group["params"])


@pytest.mark.parametrize(
    "options",
    [{}, {"use_fp16": True}, {"use_bf16": True}, {"accumulate_steps": 3}, {"use_fp16": True, "accumulate_steps": 3}],
)
def test_the_gan_keeps_precision_accumulation_and_hooks(options):
    gan, hooks = names_of("step.md")["make_gan"](**options), SeesHooks()
    gan.state.callbacks.append(hooks)
    before = [parameter.clone() for parameter in gan.state.model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = gan.fit([torch.randn(8, 2) for _ in range(6)])
    assert {"train/loss", "train/discriminator", "train/near"} <= history[0].keys()
    assert not any(map(torch.equal, before, gan.state.model.parameters()))
    steps = 6 // options.get("accumulate_steps", 1)
    assert hooks.backward == 12
    assert hooks.stepped == steps * [gan.state.optimizer.discriminator, gan.state.optimizer.generator]
    assert gan.state.global_step == steps
    assert gan.predict([torch.randn(5, 4)]).shape == (5, 2)


def test_the_gan_resumes_with_the_same_bits():
    def run(saved=None):
        gan, snapshots = names_of("step.md")["make_gan"](), Snapshots()
        gan.state.callbacks.append(snapshots)
        if saved:
            gan.state.load_state_dict(saved)
        gan.fit(list(torch.ones(48, 2).split(8)), epochs=2)
        return flat(gan.state.state_dict()), snapshots

    gold, snapshots = run()
    for number in (0, 3, 5, 8):
        assert run(snapshots.load(number))[0] == gold


def test_flat_minima_keeps_accumulation_and_hooks():
    kind, hooks = names_of("step.md")["FlatMinima"], SeesHooks()
    runner = STEP_TIME.runner([hooks], kind=kind, accumulate_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner.fit(STEP_TIME.batches(0))
    assert hooks.backward == 5
    assert len(hooks.stepped) == 3
