"""What only an accelerator can show: batches move to it, and no step waits for it."""

import copy

import pytest
import torch
from fit_core import Callback, Runner
from fit_metrics import Accuracy
from torch import nn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator"),
]


def parts():
    torch.manual_seed(0)
    device = torch.accelerator.current_accelerator()
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)).to(device)
    batches = [(torch.randn(4, 8), torch.randint(3, (4,))) for _ in range(6)]
    return device, model, batches


def test_training_on_the_accelerator_equals_the_loop_by_hand():
    device, model, batches = parts()
    ours = copy.deepcopy(model)
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()
    for input, target in batches:
        optimizer.zero_grad()
        criterion(model(input.to(device)), target.to(device)).backward()
        optimizer.step()
    runner = Runner(ours, torch.optim.SGD(ours.parameters(), lr=0.1), criterion)
    runner.fit(batches)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), ours.parameters(), strict=True))
    assert runner.predict(batches).device.type == "cpu"


@pytest.mark.parametrize("options", [{}, {"use_bf16": True}, {"accumulate_steps": 2}])
def test_no_step_waits_for_the_accelerator(options):
    device, model, batches = parts()
    if device.type != "cuda":
        pytest.skip("only CUDA can tell of a wait")

    class NoWaits(Callback):
        def on_loader_begin(self, state):
            torch.cuda.set_sync_debug_mode("error")

        def on_batch_end(self, state):
            if state.batch_idx == len(batches) - 1:
                torch.cuda.set_sync_debug_mode("default")

    pinned = [(input.pin_memory(), target.pin_memory()) for input, target in batches]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        Runner(model, optimizer, nn.CrossEntropyLoss(), callbacks=[NoWaits()], **options).fit(pinned)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_captured_graphs_of_a_compiled_model_equal_the_loop_by_hand():
    device, model, batches = parts()
    if device.type != "cuda":
        pytest.skip("only CUDA captures graphs")
    ours, criterion = copy.deepcopy(model), nn.CrossEntropyLoss()
    compiled = [torch.compile(module, mode="reduce-overhead") for module in (model, ours)]
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (model, ours)]
    right = 0
    for input, target in batches * 3:  # the first ones warm up, then the graph is replayed
        optimizers[0].zero_grad()
        output = compiled[0](input.to(device))
        criterion(output, target.to(device)).backward()
        optimizers[0].step()
        right += int((output.argmax(1).cpu() == target).sum())
    history = Runner(compiled[1], optimizers[1], criterion, [Accuracy(1)]).fit(batches * 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), ours.parameters(), strict=True))
    assert history[-1]["train/Acc@1"] == right / sum(len(target) for _, target in batches * 3)
