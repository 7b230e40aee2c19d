"""`Runner.forward`: batches that are not pairs, models that return their loss, several losses."""

import pytest
import torch
from fit_core import Callback, Runner
from torch import nn


def network(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def dicts(*sizes):
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator, "dtype": torch.float64}
    return [{"x": torch.randn(n, 4, **draw), "y": torch.randn(n, 2, **draw)} for n in sizes]


def error(output, target):
    return (output - target).abs().mean()


class FromDict(Runner):
    def forward(self):
        state = self.state
        state.output = state.model(state.input["x"])
        state.target = state.input["y"]
        if state.needs_loss:
            state.loss = state.criterion(state.output, state.target)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize(
    "options", [{}, {"accumulate_steps": 2}, {"use_bf16": True}, {"use_fp16": True, "accumulate_steps": 3}]
)
def test_a_forward_of_ones_own_trains_as_the_standard_one_on_pairs(options):
    batches = dicts(4, 4, 3, 4, 1)
    pairs = [(batch["x"], batch["y"]) for batch in batches]
    own, standard = network(), network()
    runner = FromDict(own, sgd(own), nn.MSELoss(), [error], **options)
    history = runner.fit(batches, 3, val_loader=batches)
    other = Runner(standard, sgd(standard), nn.MSELoss(), [error], **options)
    assert history == other.fit(pairs, 3, val_loader=pairs)
    assert torch.equal(weights(own), weights(standard))
    assert runner.evaluate(batches, name="test") == other.evaluate(pairs, name="test")
    assert torch.equal(runner.predict(batches), other.predict([input for input, _ in pairs]))


def test_assigning_a_forward_does_the_same_as_overriding_it():
    batches = dicts(4, 4)
    overridden, assigned = network(), network()
    FromDict(overridden, sgd(overridden), nn.MSELoss()).fit(batches)
    runner = Runner(assigned, sgd(assigned), nn.MSELoss())
    runner.forward = lambda: FromDict.forward(runner)
    runner.fit(batches)
    assert torch.equal(weights(overridden), weights(assigned))


def losses(output, target):
    squared, absolute = nn.functional.mse_loss(output, target), (output - target).abs().mean()
    return {"loss": squared + 0.5 * absolute, "squared": squared, "absolute": absolute}


class Values(Callback):
    """Notes the losses of each batch, with its samples."""

    def __init__(self):
        self.train, self.val = [], []

    def on_batch_end(self, state):
        row = (len(state.output), {"loss": state.loss.item(), **{n: v.item() for n, v in state.losses.items()}})
        (self.train if state.is_train else self.val).append(row)


def mean(rows, name):
    return sum(n * row[name] for n, row in rows) / sum(n for n, _ in rows)


@pytest.mark.parametrize("options", [{}, {"accumulate_steps": 2}])
def test_each_loss_of_a_dict_is_logged_as_the_mean_over_the_samples(options):
    pairs = [(batch["x"], batch["y"]) for batch in dicts(4, 4, 1)]
    model, plain, values = network(), network(), Values()
    history = Runner(model, sgd(model), losses, (), [values], **options).fit(pairs, val_loader=pairs[1:])
    assert list(history[0]) == [
        *("epoch", "train/loss", "train/squared", "train/absolute", "lr"),
        *("val/loss", "val/squared", "val/absolute"),
    ]
    for name in ("loss", "squared", "absolute"):
        assert history[0][f"train/{name}"] == pytest.approx(mean(values.train, name), rel=1e-12)
        assert history[0][f"val/{name}"] == pytest.approx(mean(values.val, name), rel=1e-12)
    Runner(plain, sgd(plain), lambda output, target: losses(output, target)["loss"], **options).fit(pairs)
    assert torch.equal(weights(model), weights(plain))


def test_the_mean_of_a_loss_that_some_batches_have_is_over_those():
    def sometimes(output, target):
        loss = output.mean() * 0
        return {"loss": loss, "extra": torch.tensor(float(len(output)))} if len(output) > 2 else loss

    model = network()
    pairs = [(batch["x"], batch["y"]) for batch in dicts(3, 2, 5)]
    history = Runner(model, sgd(model), sometimes).fit(pairs)
    assert history[0]["train/extra"] == (3 * 3 + 5 * 5) / 8


@pytest.mark.parametrize(
    ("criterion", "error", "message"),
    [
        (
            lambda output, target: {"kl": output.mean()},
            ValueError,
            "expected the key 'loss' in the dict of losses, got kl",
        ),
        (
            lambda output, target: {"loss": output.mean(), "error": output.mean()},
            ValueError,
            "different names for losses and metrics, got 'error' twice",
        ),
        (lambda output, target: {"loss": 3.0}, TypeError, r"expected criterion to return a scalar tensor, got 3\.0"),
    ],
)
def test_a_dict_of_losses_that_cannot_be_trained_on(criterion, error, message):
    def error_metric(output, target):
        return 0.0

    error_metric.name = "error"
    model = network()
    pairs = [(batch["x"], batch["y"]) for batch in dicts(4)]
    with pytest.raises(error, match=message):
        Runner(model, sgd(model), criterion, [error_metric]).fit(pairs)


class Detector(nn.Module):
    """Returns losses in training and predictions in evaluation, as torchvision's detectors do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, images, targets=None):
        means = [self.layer(image.mean(0)) for image in images]
        if not self.training:
            return means
        return {"box": sum((m - t).square().mean() for m, t in zip(means, targets, strict=True)) / len(images)}


class DetectorRunner(Runner):
    def forward(self):
        state = self.state
        state.batch_size = len(state.input)
        if state.is_train:
            parts = state.model(state.input, state.target)
            state.loss = {"loss": sum(parts.values()), **parts}
        else:
            state.output = state.model(state.input)


class Found:
    def reset(self):
        self.images = 0

    def update(self, output, target):
        self.images += 0 if output is None else len(output)

    def compute(self):
        return self.images


def test_a_model_without_a_loss_in_evaluation():
    images = [torch.randn(size, 4) for size in (3, 4, 5, 6)]
    batches = [(images[:2], [torch.zeros(2)] * 2), (images[2:], [torch.zeros(2)] * 2)]
    torch.manual_seed(0)
    model = Detector()
    runner = DetectorRunner(model, sgd(model), None, [Found()])
    history = runner.fit(batches, 2, val_loader=batches)
    assert list(history[0]) == ["epoch", "train/loss", "train/box", "lr", "val/Found"]
    assert history[1]["train/box"] < history[0]["train/box"]
    assert runner.evaluate(batches) == {"val/Found": 4.0}
    assert runner.state.samples_seen == 8


def test_a_criterion_of_none_needs_a_forward():
    model = network()
    with pytest.raises(TypeError, match="expected criterion to be a function"):
        Runner(model, sgd(model), None)


def test_a_forward_that_sets_no_loss_is_named():
    class Forgets(Runner):
        def forward(self):
            self.state.output = self.state.model(self.state.input)

    model = network()
    pairs = [(batch["x"], batch["y"]) for batch in dicts(4)]
    with pytest.raises(
        TypeError,
        match=r"expected forward to set state\.loss to a scalar tensor, got None. Set self.state.loss",
    ):
        Forgets(model, sgd(model), nn.MSELoss()).fit(pairs)


def test_predict_needs_no_loss_and_no_target():
    asked = []

    class Watch(FromDict):
        def forward(self):
            asked.append((self.state.needs_loss, self.state.criterion(1, 2)))
            self.state.output = self.state.model(self.state.input)

    model = network()
    runner = Watch(model, sgd(model), lambda output, target: "a loss")
    inputs = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(runner.predict(inputs.split(2)), model(inputs).detach())
    assert asked == [(False, None)] * 3


def test_a_callback_makes_the_target():
    class Auto(Callback):
        def on_batch_begin(self, state):
            state.target = state.input

    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    inputs = [torch.randn(3, 4), torch.randn(2, 4)]
    runner = Runner(model, sgd(model), nn.MSELoss(), callbacks=[Auto()])
    assert runner.predict(inputs).shape == (5, 4)
    with torch.no_grad():
        expected = sum(len(x) * float(nn.functional.mse_loss(model(x), x)) for x in inputs) / 5
    pairs = [(x, torch.zeros(len(x))) for x in inputs]
    assert runner.evaluate(pairs)["val/loss"] == pytest.approx(expected, rel=1e-6)


def test_the_modes_and_names_of_loaders_are_in_the_state():
    seen = []

    class Watch(Callback):
        def on_loader_begin(self, state):
            seen.append((state.loader_name, state.is_train, state.needs_loss))

    model = network()
    pairs = [(batch["x"], batch["y"]) for batch in dicts(4)]
    runner = Runner(model, sgd(model), nn.MSELoss(), callbacks=[Watch()])
    runner.fit(pairs, val_loader=pairs)
    assert runner.evaluate(pairs, name="test").keys() == {"test/loss"}
    runner.predict(pairs)
    assert seen == [
        ("train", True, True),
        ("val", False, True),
        ("test", False, True),
        ("predict", False, False),
    ]
