"""Programs with losses of their own train through `Runner.forward` to the same weights as a loop written by hand."""

import copy

import pytest
import torch
from by_hand import assert_same_weights, mean, sgd
from fit_core import Callback, Runner
from torch import nn
from torch.nn import functional

# A variational autoencoder: batches are tensors alone, the loss is a dict.


class AutoEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 4), nn.Linear(2, 6)

    def forward(self, points):
        centre, log_variance = self.encoder(points).chunk(2, dim=1)
        latent = centre
        if self.training:
            latent = latent + torch.randn_like(centre) * (log_variance / 2).exp()
        return self.decoder(latent), centre, log_variance


def autoencoder_losses(points, restored, centre, log_variance):
    reconstruction = functional.mse_loss(restored, points)
    kl = (centre.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
    return {"loss": reconstruction + 0.1 * kl, "kl": kl, "reconstruction": reconstruction}


class AutoEncoderRunner(Runner):
    def forward(self):
        state = self.state
        state.output, *statistics = state.model(state.input)
        if state.needs_loss:
            state.loss = autoencoder_losses(state.input, state.output, *statistics)


def test_each_loss_of_a_variational_autoencoder_is_in_the_history():
    generator = torch.Generator().manual_seed(1)
    train_batches = [torch.randn(size, 6, generator=generator) for size in (4, 4, 2)]
    val_batches = [torch.randn(size, 6, generator=generator) for size in (5, 1)]
    torch.manual_seed(0)
    by_hand = AutoEncoder()
    model = copy.deepcopy(by_hand)

    optimizer = sgd(by_hand)
    torch.manual_seed(2)
    rows = []
    for _ in range(3):
        row = {}
        for name, batches in (("train", train_batches), ("val", val_batches)):
            by_hand.train(name == "train")
            losses = []
            for points in batches:
                parts = autoencoder_losses(points, *by_hand(points))
                if name == "train":
                    optimizer.zero_grad()
                    parts["loss"].backward()
                    optimizer.step()
                losses.append(parts)
            for part in ("loss", "kl", "reconstruction"):
                row[f"{name}/{part}"] = mean([parts[part] for parts in losses], list(map(len, batches)))
        rows.append(row)

    torch.manual_seed(2)
    runner = AutoEncoderRunner(model, sgd(model), None)
    history = runner.fit(train_batches, epochs=3, val_loader=val_batches)
    assert_same_weights(model, by_hand)
    for epoch, row in enumerate(rows, start=1):
        assert history[epoch - 1] == {"epoch": epoch, "lr": 0.1} | {
            name: pytest.approx(value, rel=1e-12) for name, value in row.items()
        }
    validation = {name: value for name, value in history[-1].items() if name.startswith("val/")}
    assert runner.evaluate(val_batches) == validation
    assert torch.equal(runner.predict(val_batches), torch.cat([by_hand(points)[0] for points in val_batches]))


# Knowledge distillation: the teacher belongs to the Runner, and not to the run.


def teacher_network():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


def student_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.2), nn.ReLU(), nn.Linear(4, 3))


def labelled_points(*sizes):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator)) for size in sizes
    ]


def distillation_loss(output, target, wanted):
    hard = functional.cross_entropy(output, target)
    soft = functional.kl_div((output / 2).log_softmax(1), (wanted / 2).softmax(1), reduction="batchmean")
    return {"loss": hard + 4 * soft, "soft": soft}


class DistillationRunner(Runner):
    def __init__(self, *arguments, teacher):
        super().__init__(*arguments)
        self.teacher = teacher.eval().requires_grad_(False)

    def forward(self):
        state = self.state
        state.output = state.model(state.input)
        if state.needs_loss:
            state.loss = distillation_loss(state.output, state.target, self.teacher(state.input))


def test_a_student_learns_from_a_teacher_that_is_left_alone():
    train_batches, val_batches = labelled_points(8, 8, 3), labelled_points(6, 2)
    by_hand, teacher = student_network(), teacher_network().eval()
    optimizer = sgd(by_hand)
    torch.manual_seed(2)
    for _ in range(3):
        for points, labels in train_batches:
            with torch.no_grad():
                wanted = teacher(points)
            optimizer.zero_grad()
            distillation_loss(by_hand(points), labels, wanted)["loss"].backward()
            optimizer.step()

    model = student_network()
    runner = DistillationRunner(model, sgd(model), None, teacher=teacher_network())
    torch.manual_seed(2)
    history = runner.fit(train_batches, epochs=3, val_loader=val_batches)
    assert_same_weights(model, by_hand)
    assert_same_weights(runner.teacher, teacher_network())
    assert not any(module.training for module in runner.teacher.modules())
    saved = runner.state.state_dict()
    assert saved["model"].keys() == model.state_dict().keys()
    assert saved["optimizer"]["state"].keys() == set(range(len(list(model.parameters()))))

    by_hand.eval()
    losses = [distillation_loss(by_hand(points), labels, teacher(points)) for points, labels in val_batches]
    for name in ("loss", "soft"):
        assert history[-1][f"val/{name}"] == pytest.approx(mean([loss[name] for loss in losses], [6, 2]), rel=1e-12)
    assert runner.evaluate(val_batches)["val/soft"] == history[-1]["val/soft"]
    assert torch.equal(runner.predict(val_batches), torch.cat([by_hand(points) for points, _ in val_batches]))


# SimCLR: two views of each image, a loss between all of a batch.


def contrastive_loss(first, second, temperature=0.5):
    """NT-Xent of Chen et al. 2020: find the other view of each image among all views of the batch."""
    views = functional.normalize(torch.cat([first, second]))
    similarity = (views @ views.T / temperature).fill_diagonal_(-torch.inf)
    return functional.cross_entropy(similarity, torch.arange(len(views)).roll(len(first)))


class ContrastiveRunner(Runner):
    def forward(self):
        state = self.state
        state.output = state.model(state.input)
        if state.needs_loss:
            state.loss = contrastive_loss(state.output, state.model(state.target))


def test_two_views_of_each_image_are_contrasted():
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(size, 6, generator=generator) for size in (8, 8, 5)]
    pairs = [
        tuple(batch + 0.1 * torch.randn(batch.shape, generator=generator) for _ in ("first view", "second view"))
        for batch in images
    ]
    by_hand, model = student_network(), student_network()
    optimizer = sgd(by_hand)
    torch.manual_seed(2)
    for _ in range(3):
        for first, second in pairs:
            optimizer.zero_grad()
            contrastive_loss(by_hand(first), by_hand(second)).backward()
            optimizer.step()

    runner = ContrastiveRunner(model, sgd(model), None)
    torch.manual_seed(2)
    history = runner.fit(pairs, epochs=3, val_loader=pairs)
    assert_same_weights(model, by_hand)
    by_hand.eval()
    losses = [contrastive_loss(by_hand(first), by_hand(second)) for first, second in pairs]
    assert history[-1]["val/loss"] == pytest.approx(mean(losses, [8, 8, 5]), rel=1e-12)
    assert runner.evaluate(pairs) == {"val/loss": history[-1]["val/loss"]}
    embeddings = runner.predict(images)  # images alone, without a second view
    assert torch.equal(embeddings, torch.cat([by_hand(batch) for batch in images]))


# A target that a callback makes.


class AutoTarget(Callback):
    def on_batch_begin(self, state):
        state.target = state.input


def test_a_callback_may_make_the_target_of_pairs_and_of_predictions():
    points = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    by_hand = nn.Linear(3, 3)
    model = copy.deepcopy(by_hand)
    runner = Runner(model, sgd(model), nn.MSELoss(), callbacks=[AutoTarget()])
    assert torch.equal(runner.predict([points]), by_hand(points))
    for call in (runner.fit, runner.evaluate):
        with pytest.raises(TypeError, match=r"expected the loader to yield pairs \(input, target\).* got a Tensor"):
            call([points])
    assert_same_weights(model, by_hand)

    loss = functional.mse_loss(by_hand(points), points)
    loss.backward()
    sgd(by_hand).step()
    placeholder = torch.zeros(4)
    assert runner.fit([(points, placeholder)])[0]["train/loss"] == float(loss.detach())
    assert_same_weights(model, by_hand)
