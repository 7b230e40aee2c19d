"""The tensors of a checkpoint are on the CPU, and share memory as the run's own do."""

import torch
from fit_callbacks import CheckpointSaver
from fit_callbacks.checkpoint.content import to_cpu
from scene import batches, make
from torch import nn


def test_tensors_of_the_cpu_are_copied_only_if_asked():
    state = {"weights": [torch.arange(3.0)], "epoch": 1, "name": ("a", None)}
    same, copied = to_cpu(state), to_cpu(state, copy=True)
    state["weights"][0].zero_()
    assert same["weights"][0].tolist() == [0, 0, 0]
    assert copied["weights"][0].tolist() == [0, 1, 2]
    assert (copied["epoch"], copied["name"]) == (1, ("a", None))


def test_a_tied_weight_is_copied_once_and_views_and_empty_tensors_are_told_apart():
    weight = nn.Parameter(torch.arange(6.0).view(2, 3))
    empty = [torch.zeros(0), torch.zeros(0, 3)]
    copied = to_cpu(
        {"one": weight, "two": weight.data, "row": weight[0], "turned": weight.T, "empty": empty}, copy=True
    )
    assert copied["one"] is copied["two"]
    assert not copied["one"].requires_grad
    assert copied["row"].tolist() == [0, 1, 2]
    assert copied["turned"].tolist() == weight.T.tolist()
    assert [tuple(part.shape) for part in copied["empty"]] == [(0,), (0, 3)]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 3), nn.Linear(6, 3)
        self.outer.weight = self.inner.weight

    def forward(self, input):
        return self.inner(input) + self.outer(input)


def test_a_file_with_tied_weights_is_as_large_in_the_background(tmp_path):
    for background in (False, True):
        saver = CheckpointSaver(tmp_path / str(background), background=background)
        make(saver, model=Tied()).fit(batches())
    sizes = [(tmp_path / str(background) / "last.pt").stat().st_size for background in (False, True)]
    assert sizes[0] == sizes[1]
