"""Batches are weighted: any split into batches and windows equals one big batch, to the last digits of float64."""

import copy

import pytest
import torch
from fit_core import Callback, Mean, Runner
from torch import nn

IGNORED = -100


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 5)).double()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)


def sentences(count, length=7):
    """Token classification in which sentences have 0 to 7 labels."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(12, (count, length), generator=generator)
    labels = torch.randint(5, (count, length), generator=generator)
    lengths = torch.randint(0, length + 1, (count, 1), generator=generator)
    return tokens, labels.masked_fill(torch.arange(length) >= lengths, IGNORED)


def token_loss(output, target):
    return nn.functional.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=IGNORED)


def token_accuracy(output, target):
    kept = target != IGNORED
    return (output.argmax(2) == target)[kept].double().mean()


class Tokens(Callback):
    """Weighs each batch by its labels, as a number or as a tensor that stays on the device."""

    def __init__(self, kind):
        self.kind = kind

    def on_batch_begin(self, state):
        count = (state.target != IGNORED).sum()
        state.weight = int(count) if self.kind == "number" else count


def train(batches, kind="tensor", epochs=3, **options):
    model = network()
    runner = Runner(model, sgd(model), token_loss, [token_accuracy], [Tokens(kind)], **options)
    history = runner.fit(batches, epochs, val_loader=batches)
    return {name: value.clone() for name, value in model.state_dict().items()}, history


def split(*sizes):
    tokens, labels = sentences(sum(sizes))
    return list(zip(tokens.split(sizes), labels.split(sizes), strict=True))


def assert_same(weights, expected):
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["number", "tensor"])
@pytest.mark.parametrize(("sizes", "window"), [((4, 4, 4), 3), ((2, 7, 3), 3), ((5, 1, 1, 5), 4), ((3, 4, 5), 8)])
def test_a_window_of_uneven_batches_equals_one_big_batch(kind, sizes, window):
    weights, history = train(split(*sizes), kind, accumulate_steps=window)
    expected, big = train(split(sum(sizes)), kind)
    assert_same(weights, expected)
    for row, other in zip(history, big, strict=True):
        assert row == pytest.approx(other, rel=1e-12)


def test_numbers_and_tensors_as_weights_give_the_same():
    by_number, by_tensor = (train(split(3, 5, 4), kind, accumulate_steps=2) for kind in ("number", "tensor"))
    assert_same(by_number[0], by_tensor[0])
    for row, other in zip(by_number[1], by_tensor[1], strict=True):
        assert row == pytest.approx(other, rel=1e-12)


def test_several_windows_and_a_short_one_equal_the_loop_by_hand():
    batches = split(3, 5, 2, 4, 1)
    weights, _ = train(batches, accumulate_steps=2, epochs=2)
    model = network()
    optimizer = sgd(model)
    for _ in range(2):
        for window in (batches[:2], batches[2:4], batches[4:]):
            count = sum(int((labels != IGNORED).sum()) for _, labels in window)
            optimizer.zero_grad()
            for tokens, labels in window:
                (token_loss(model(tokens), labels) * int((labels != IGNORED).sum()) / count).backward()
            optimizer.step()
    assert_same(weights, model.state_dict())


def test_where_nothing_is_rescaled_the_bits_are_those_without_weights():
    batches = [(tokens, labels.clamp_min(0)) for tokens, labels in split(4, 4, 4, 4)]
    weighted = train(batches, "number", accumulate_steps=2)[0]
    model = network()
    Runner(model, sgd(model), token_loss, accumulate_steps=2).fit(batches, 3)
    assert all(torch.equal(value, weighted[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["number", "tensor"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_batch_without_any_label_counts_for_nothing(kind, place):
    batches = split(3, 4)
    empty = (batches[0][0], torch.full_like(batches[0][1], IGNORED))
    with_empty = [*batches[:place], empty, *batches[place:]]
    weights, history = train(with_empty, kind, accumulate_steps=3)
    expected, rows = train(batches, kind, accumulate_steps=2)
    assert_same(weights, expected)
    for row, other in zip(history, rows, strict=True):
        assert row == pytest.approx(other, rel=1e-12)


def test_function_metrics_weigh_by_the_batch_and_not_by_what_the_model_returns():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def forward(self, input):
            return {"scale": input.mean(), "logits": self.layer(input)}

    model = Model()
    pairs = [(torch.ones(n, 1), torch.full((n, 1), value)) for n, value in ((6, 1.0), (4, 0.0))]
    runner = Runner(model, sgd(model), lambda o, t: o["logits"].mean() * 0, [lambda o, t: t.mean()])
    assert runner.evaluate(pairs)["val/<lambda>"] == pytest.approx(0.6, rel=1e-7)


def test_loss_parts_are_weighed_by_tokens_and_resume_to_the_same_bits():
    saved = []

    class Save(Callback):
        def on_checkpoint(self, state):
            saved.append(copy.deepcopy(state.state_dict()))

    def parts(output, target):
        loss = token_loss(output, target)
        return {"loss": loss, "double": 2 * loss}

    def run(callbacks, state=None):
        model = network()
        runner = Runner(model, sgd(model), parts, [token_accuracy], [Tokens("tensor"), *callbacks], accumulate_steps=2)
        if state:
            runner.state.load_state_dict(state)
        return runner.fit(split(3, 5, 2, 4, 1), 2, val_loader=split(2, 3)), model.state_dict()

    history, weights = run([Save()])
    assert history[0]["train/double"] == pytest.approx(2 * history[0]["train/loss"], rel=1e-12)
    for state in saved:
        rows, resumed = run([], state)
        assert rows == history
        assert all(torch.equal(value, resumed[name]) for name, value in weights.items())


def test_a_mean_takes_numbers_and_tensors_in_any_mixture():
    mean = Mean()
    mean.update(torch.tensor(1.0), 3)
    mean.update(5.0, torch.tensor(1))
    mean.update(torch.tensor(torch.nan), torch.tensor(0))
    mean.update(torch.nan, 0)
    assert float(mean.compute()) == 2.0
    again = Mean()
    again.load_state_dict(mean.state_dict())
    again.update(torch.tensor(2.0), 4)
    assert float(again.compute()) == 2.0
