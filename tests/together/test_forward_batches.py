"""Batches of images with boxes, and graphs, train through `Runner.forward` to the same weights as a loop by hand."""

import copy
from dataclasses import dataclass

import pytest
import torch
from by_hand import assert_same_weights, mean, sgd
from fit_core import Callback, Runner
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

# Detection: images of unequal size, a dict of losses in training, a list of predictions in evaluation.


class Detector(nn.Module):
    """Called like the models of torchvision. Predicts a box and a score per column of each image."""

    def __init__(self):
        super().__init__()
        self.body, self.box, self.score = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, images, targets=None):
        features = [self.body(image).relu().mean(1).T for image in images]
        predictions = [{"boxes": self.box(columns), "scores": self.score(columns).squeeze(1)} for columns in features]
        if not self.training:
            return predictions
        pairs = list(zip(predictions, targets, strict=True))
        box_losses = [functional.mse_loss(output["boxes"].mean(0), target["boxes"].mean(0)) for output, target in pairs]
        score_losses = [(output["scores"].mean() - len(target["boxes"])).square() for output, target in pairs]
        return {"loss_box": torch.stack(box_losses).mean(), "loss_score": torch.stack(score_losses).mean()}


class DetectionRunner(Runner):
    def forward(self):
        state = self.state
        if state.is_train:
            losses = state.model(state.input, state.target)
            state.loss = {"loss": sum(losses.values()), **losses}
        else:
            state.output = state.model(state.input)


class BoxCount:
    """Counts predicted and true boxes. Has no idea of a prediction that is None, like a stock metric."""

    def reset(self):
        self.predicted = self.true = 0

    def update(self, output, target):
        self.predicted += sum(len(image["boxes"]) for image in output)
        self.true += sum(len(image["boxes"]) for image in target)

    def compute(self):
        return {"predicted boxes": self.predicted, "true boxes": self.true}

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state_dict):
        vars(self).update(state_dict)


def images_with_boxes():
    generator = torch.Generator().manual_seed(1)
    sizes, boxes = [(5, 7), (4, 4), (6, 5), (8, 3), (3, 9)], [1, 2, 2, 3, 1]
    return [
        (torch.randn(1, *size, generator=generator), {"boxes": torch.randn(count, 4, generator=generator)})
        for size, count in zip(sizes, boxes, strict=True)
    ]


def detection_loader(shuffle):
    def collate(samples):
        return tuple(zip(*samples, strict=True))

    return DataLoader(images_with_boxes(), batch_size=2, shuffle=shuffle, collate_fn=collate)


def train_detector(callbacks=(), state_dict=None):
    torch.manual_seed(0)
    model = Detector()
    runner = DetectionRunner(model, sgd(model), None, [BoxCount()], callbacks)
    if state_dict is not None:
        runner.state.load_state_dict(state_dict)
    torch.manual_seed(2)
    return runner, runner.fit(detection_loader(shuffle=True), epochs=2, val_loader=detection_loader(shuffle=False))


def test_a_detector_trains_on_the_sum_of_its_losses():
    torch.manual_seed(0)
    by_hand = Detector()
    optimizer = sgd(by_hand)
    torch.manual_seed(2)
    rows = []
    for _ in range(2):
        losses, sizes = [], []
        for images, targets in detection_loader(shuffle=True):
            optimizer.zero_grad()
            parts = by_hand(images, targets)
            sum(parts.values()).backward()
            optimizer.step()
            losses.append(parts)
            sizes.append(len(images))
        rows.append({name: mean([parts[name] for parts in losses], sizes) for name in losses[0]})
        iter(detection_loader(shuffle=False))  # draws a random number, as the pass over the validation data does

    runner, history = train_detector()
    assert_same_weights(runner.state.model, by_hand)
    for row, expected in zip(history, rows, strict=True):
        assert row["train/loss_box"] == pytest.approx(expected["loss_box"], rel=1e-12)
        assert row["train/loss_score"] == pytest.approx(expected["loss_score"], rel=1e-12)
        assert row["train/loss"] == pytest.approx(sum(expected.values()), rel=1e-6)  # a sum in float32
        assert (row["val/predicted boxes"], row["val/true boxes"]) == (7 + 4 + 5 + 3 + 9, 9)
        assert row.keys() & {"val/loss", "train/predicted boxes"} == set()


def test_a_detector_is_evaluated_without_a_loss_and_predicts_per_image():
    runner, history = train_detector()
    counts = {name: history[-1][name] for name in ("val/predicted boxes", "val/true boxes")}
    assert runner.evaluate(detection_loader(shuffle=False)) == counts
    model = runner.state.model.eval()
    predictions = runner.predict(detection_loader(shuffle=False))
    assert len(predictions) == 5
    for prediction, (image, _) in zip(predictions, images_with_boxes(), strict=True):
        expected = model([image])[0]
        assert torch.equal(prediction["boxes"], expected["boxes"])
        assert torch.equal(prediction["scores"], expected["scores"])


class Keep(Callback):
    """Keeps what a checkpoint would contain, at each moment at which one may be written."""

    def __init__(self):
        self.saved = []

    def on_checkpoint(self, state):
        self.saved.append(copy.deepcopy(state.state_dict()))


def test_a_detector_resumes_with_the_same_bits():
    keep = Keep()
    uninterrupted, history = train_detector([keep])
    assert len(keep.saved) == 2 * (3 + 1)
    for state_dict in keep.saved:
        resumed, resumed_history = train_detector(state_dict=state_dict)
        assert_same_weights(resumed.state.model, uninterrupted.state.model)
        assert resumed_history == history


# A graph: one batch is a whole epoch, and masks say which nodes count.


@dataclass
class Graph:
    x: Tensor
    edge_index: Tensor
    y: Tensor
    train_mask: Tensor
    val_mask: Tensor


def random_graph(nodes, seed):
    generator = torch.Generator().manual_seed(seed)
    place = torch.rand(nodes, generator=generator)
    return Graph(
        x=torch.randn(nodes, 5, generator=generator),
        edge_index=torch.randint(nodes, (2, 3 * nodes), generator=generator),
        y=torch.randint(3, (nodes,), generator=generator),
        train_mask=place < 0.5,
        val_mask=place > 0.7,
    )


class GraphNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x, edge_index):
        source, destination = edge_index
        hidden = self.first(x).relu()
        return self.second(hidden.index_add(0, destination, hidden[source]))


class GraphRunner(Runner):
    def forward(self):
        state, graph = self.state, self.state.input
        state.output = state.model(graph.x, graph.edge_index)
        if state.needs_loss:
            mask = graph.train_mask if state.is_train else graph.val_mask
            state.output, state.target = state.output[mask], graph.y[mask]
            state.loss = functional.cross_entropy(state.output, state.target)
            state.batch_size, state.weight = len(graph.x), mask.sum()


def accuracy(output, target):
    return (output.argmax(1) == target).double().mean()


def test_a_graph_is_an_epoch_and_its_masks_say_which_nodes_count():
    graph, other = random_graph(20, seed=1), random_graph(50, seed=2)
    torch.manual_seed(0)
    by_hand = GraphNetwork()
    model = copy.deepcopy(by_hand)
    optimizer, losses = sgd(by_hand), []
    for _ in range(10):
        optimizer.zero_grad()
        output = by_hand(graph.x, graph.edge_index)
        loss = functional.cross_entropy(output[graph.train_mask], graph.y[graph.train_mask])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    runner = GraphRunner(model, sgd(model), None, [accuracy])
    history = runner.fit([graph], epochs=10, val_loader=[graph])
    assert_same_weights(model, by_hand)
    assert [row["train/loss"] for row in history] == losses
    assert (runner.state.samples_seen, runner.state.global_step) == (200, 10)

    outputs = [by_hand(graph.x, graph.edge_index), by_hand(other.x, other.edge_index)]
    scores = torch.cat([outputs[0][graph.val_mask], outputs[1][other.val_mask]])
    labels = torch.cat([graph.y[graph.val_mask], other.y[other.val_mask]])
    assert runner.evaluate([graph, other]) == {
        "val/loss": pytest.approx(
            float(functional.cross_entropy(scores, labels).detach()), rel=1e-6
        ),  # a mean in float32
        "val/accuracy": pytest.approx(float(accuracy(scores, labels)), rel=1e-12),
    }
    assert torch.equal(runner.predict([graph, other]), torch.cat(outputs))
