"""A sharded model is never saved as the shard of one process."""

import pytest
import torch
from fit_callbacks import CheckpointSaver
from processes import on_two_processes
from scene import batches, make
from torch import nn

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        not hasattr(torch.cpu.Stream(), "record_event"), reason="this torch shards on accelerators only"
    ),
]


def save(rank):
    from torch.distributed.fsdp import fully_shard

    model = nn.Linear(6, 4)
    fully_shard(model)
    try:
        make(CheckpointSaver("never"), model=model).fit(batches())
    except NotImplementedError as error:
        return str(error)


def test_a_sharded_model_is_refused(tmp_path):
    for message in on_two_processes({"save": save}, tmp_path)["save"]:
        assert message.startswith("expected a model that is whole on every process, got one whose weight is sharded")
