"""The search for a learning rate."""

import itertools
import math
import random

import numpy
import pytest
import torch
from fit_callbacks import LRFinder
from fit_core import Callback
from scene import Watch, batches, flat, make, network
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, default_collate


def quadratic(lr_max=8.0, **options):
    """On (w - 1)^2 / 2 averaged over nothing: plain SGD converges below lr 2 and explodes above."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    finder = LRFinder(1e-3, lr_max, steps=60, smoothing=0.0, **options)
    runner = make(finder, model=model)
    runner.state.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    runner.state.criterion = lambda output, target: ((output - target) ** 2).mean() / 2
    return runner, finder, model


def test_the_curve_is_that_of_a_loop_by_hand():
    runner, finder, _ = quadratic()
    runner.fit([(torch.ones(1, 1), torch.ones(1, 1))], steps_per_epoch=60)
    rates = [1e-3 * 8000 ** (step / 59) for step in range(60)]
    weight, losses = 0.0, []
    for lr in rates:
        loss = (weight - 1) ** 2 / 2
        if losses and loss > 4 * min(losses):
            break
        losses.append(loss)
        weight -= lr * (weight - 1)
    assert finder.lrs == pytest.approx(rates[: len(losses)])
    assert finder.losses == pytest.approx(losses, rel=1e-3)
    slopes = [b - a for a, b in itertools.pairwise(losses)]
    assert finder.suggestion == pytest.approx(rates[slopes.index(min(slopes))])
    assert 0.01 < finder.suggestion < 2


@pytest.mark.parametrize("use_fp16", [False, True])
def test_everything_is_put_back_exactly(use_fp16):
    trained, searched = make(use_fp16=use_fp16), make(use_fp16=use_fp16)
    for runner in (trained, searched):
        torch.manual_seed(0)
        runner.fit(batches(), epochs=2)
    before = flat([trained.state.state_dict()[key] for key in ("model", "optimizer", "grad_scaler")])
    finder = LRFinder(steps=20)
    searched.state.callbacks.append(finder)
    searched.fit(batches(), steps_per_epoch=20)
    assert flat([searched.state.state_dict()[key] for key in ("model", "optimizer", "grad_scaler")]) == before
    assert len(finder.lrs) > 10


class Draws(Dataset):
    """Augments with every random generator."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        noise = torch.randn(6) + random.random() + float(numpy.random.rand())
        return noise, index % 3


class DrawsBatches(Draws):
    def __getitem__(self, indices):
        return default_collate([super(DrawsBatches, self).__getitem__(index) for index in indices])


@pytest.mark.parametrize("inside", [False, True])
def test_training_after_a_search_is_the_same_as_without_one(inside):
    class Counts(nn.Module):
        """Remembers in a buffer that is not saved, and in one that grows."""

        def __init__(self):
            super().__init__()
            self.register_buffer("batches", torch.zeros(()), persistent=False)
            self.register_buffer("seen", torch.zeros(0))

        def forward(self, input):
            if self.training:
                self.batches += 1
                self.seen = torch.cat([self.seen, input.mean().detach()[None]])
            return input * (1 + self.batches / 100)

    def train(searches):
        model = nn.Sequential(Counts(), network())
        random.seed(0), numpy.random.seed(0), torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        loader = DataLoader(Draws(), batch_size=4, shuffle=True, generator=generator)
        if inside:  # the loader's sampler, a BatchSampler
            sampler = BatchSampler(RandomSampler(Draws(), generator=generator), 4, False)
            loader = DataLoader(DrawsBatches(), batch_size=None, sampler=sampler)
        if searches:
            make(LRFinder(steps=12), model=model).fit(loader)
        runner = make(model=model)
        return runner.fit(loader, epochs=2), runner.state.state_dict()["model"]

    (history, model), (expected, by_itself) = train(searches=True), train(searches=False)
    assert history == expected
    assert flat(model) == flat(by_itself)


def test_a_search_asks_for_the_weights_of_a_lazy_model():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(
        ValueError, match=r"LRFinder expected a model with weights, .* Run it once before fit: model\(input\)"
    ):
        make(LRFinder(steps=10), model=model).fit(batches(), steps_per_epoch=10)


def test_weights_are_back_after_an_explosion_and_after_an_error():
    runner, finder, model = quadratic(lr_max=100.0)
    history = runner.fit([(torch.ones(1, 1), torch.ones(1, 1))], steps_per_epoch=60)
    assert len(finder.lrs) < 60
    assert model.weight.item() == 0.0
    assert [row["stopped_after_batch"] for row in history] == [len(finder.lrs) + 1]

    class Fail(Callback):
        def on_batch_end(self, state):
            if state.batch_idx == 5:
                raise RuntimeError("broken off")

    runner.state.callbacks.append(Fail())
    with pytest.raises(RuntimeError, match="broken off"):
        runner.fit([(torch.ones(1, 1), torch.ones(1, 1))], steps_per_epoch=60)
    assert model.weight.item() == 0.0
    assert runner.state.optimizer.param_groups[0]["lr"] == 0.1


def test_a_run_that_fails_before_its_search_keeps_its_error_and_its_weights():
    class Fail(Callback):
        is_broken = True

        def on_begin(self, state):
            if self.is_broken:
                raise RuntimeError("cannot begin")

    fail, finder = Fail(), LRFinder(steps=10)
    runner = make(fail, finder)
    with pytest.raises(RuntimeError, match="cannot begin"):
        runner.fit(batches(), steps_per_epoch=10)
    fail.is_broken = False
    runner.fit(batches(), steps_per_epoch=10)
    nn.init.ones_(runner.state.model[0].weight)  # trained since the search, say
    fail.is_broken = True
    with pytest.raises(RuntimeError, match="cannot begin"):
        runner.fit(batches(), steps_per_epoch=10)
    assert (runner.state.model[0].weight == 1).all()


def test_a_criterion_with_parameters_is_restored_too():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, target):
            return nn.functional.cross_entropy(self.scale * output, target)

    scales, runner = [], make(LRFinder(steps=20))
    criterion = runner.state.criterion = Scaled()
    runner.state.optimizer.add_param_group({"params": criterion.parameters()})
    runner.state.callbacks.append(Watch("on_batch_end", lambda state: scales.append(criterion.scale.item())))
    runner.fit(batches(), steps_per_epoch=20)
    assert len(set(scales)) > 10
    assert criterion.scale.item() == 1
    assert criterion.scale.grad is None


def test_smoothing_and_accumulation():
    finder = LRFinder(steps=12, smoothing=0.5)
    make(finder, model=network(), accumulate_steps=2).fit(batches(), epochs=6)
    assert len(finder.lrs) == 12
    assert all(math.isfinite(loss) for loss in finder.losses)


def test_the_finder_draws_and_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"got 5. Pass steps_per_epoch=100"):
        make(LRFinder()).fit(batches())
    with pytest.raises(ValueError, match=r"expected max_lr to be above 1, got 0\.1"):
        LRFinder(1.0, 0.1)
    finder = LRFinder(steps=10)
    with pytest.raises(ValueError, match="expected a curve, got none yet"):
        finder.plot()
    make(finder).fit(batches(), epochs=2)
    figure = finder.plot(tmp_path / "new" / "lr.png")
    assert (tmp_path / "new" / "lr.png").read_bytes().startswith(b"\x89PNG")
    assert figure.axes[0].lines[0].get_xydata().tolist() == [
        list(point) for point in zip(finder.lrs, finder.losses, strict=True)
    ]
