"""Batches of unequal weights, losses of several parts and criteria with parameters, on two real processes."""

from functools import partial

import pytest
import torch
from distributed_run import accuracy, network, samples, split
from fit_core import Callback, Runner
from processes import on_two_processes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.timeout(120)


IGNORED = -100


def token_loss(output, target):
    loss = nn.functional.cross_entropy(output, target, ignore_index=IGNORED)
    return {"loss": loss, "double": 2 * loss}


def label_accuracy(output, target):
    return accuracy(output[target != IGNORED], target[target != IGNORED]).nan_to_num()


def labelled(count):
    """Samples of which some have no label, and so unequally many in each batch and on each process."""
    inputs, targets = samples(count)
    return inputs, targets.masked_fill(inputs[:, 0] > 0.3, IGNORED)


def train_on_labels(rank, accumulate_steps, as_tensor, world=2, sizes=(5, 3)):
    class Labels(Callback):
        def on_batch_begin(self, state):
            count = (state.target != IGNORED).sum()
            state.weight = count if as_tensor else int(count)

    model = network() if world == 1 else DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = Runner(model, optimizer, token_loss, [label_accuracy], [Labels()], accumulate_steps=accumulate_steps)
    inputs, targets = labelled(64)
    parts = [tensor.split(sizes * (64 // sum(sizes)))[rank::world] for tensor in (inputs, targets)]
    history = run.fit(list(zip(*parts, strict=True)), 2, val_loader=split(17, 4, rank, world))
    return run.state.state_dict()["model"], history


WEIGHTED = [(1, False), (2, True), (4, True)]


@pytest.mark.parametrize(("accumulate_steps", "as_tensor"), WEIGHTED)
def test_processes_with_unequal_weights_equal_one_big_batch(ranks, accumulate_steps, as_tensor):
    results = ranks["weighted", accumulate_steps, as_tensor]
    weights, history = train_on_labels(0, 1, False, 1, (8 * accumulate_steps,))
    for other_weights, other_history in results:
        for name, value in weights.items():
            torch.testing.assert_close(other_weights[name], value, rtol=1e-12, atol=1e-13)
        for row, other in zip(history, other_history, strict=True):
            assert other == pytest.approx(row, rel=1e-11)


def evaluate_parts(rank):
    model = network()
    run = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), token_loss)
    return run.evaluate(split(4, 4) if rank else [])


def test_a_process_without_a_batch_knows_the_losses_of_the_others(ranks):
    results = ranks["without a batch"]
    model = network()
    alone = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), token_loss).evaluate(split(4, 4))
    for result in results:
        assert result == pytest.approx(alone, rel=1e-12)


class Centres(nn.Module):
    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.eye(3, dtype=torch.float64))

    def forward(self, output, target):
        return nn.functional.cross_entropy(output @ self.centres, target)


def train_criterion(rank, wraps, world=2):
    criterion = Centres()
    criterion = DistributedDataParallel(criterion) if wraps else criterion
    model = DistributedDataParallel(network()) if world > 1 else network()
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=0.1, momentum=0.9)
    run = Runner(model, optimizer, criterion, accumulate_steps=2)
    try:
        run.fit(split(32, 8 // world, rank, world), 2)
    except ValueError as error:
        return str(error)
    return run.state.state_dict()["criterion"]["centres"]


def test_a_criterion_with_parameters_is_averaged_over_processes_or_refused(ranks):
    for refusal in ranks["criterion", False]:
        assert "Centres with trainable parameters, which would drift apart. Wrap it" in refusal


def test_a_criterion_in_ddp_learns_as_in_one_process(ranks):
    alone = train_criterion(0, False, 1)
    for centres in ranks["criterion", True]:
        torch.testing.assert_close(centres, alone, rtol=1e-12, atol=1e-13)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of both ranks, by case."""
    cases = {
        **{
            ("weighted", *case): partial(train_on_labels, accumulate_steps=case[0], as_tensor=case[1])
            for case in WEIGHTED
        },
        "without a batch": evaluate_parts,
        **{("criterion", wraps): partial(train_criterion, wraps=wraps) for wraps in (False, True)},
    }
    return on_two_processes(cases, tmp_path_factory.mktemp("ranks"))
