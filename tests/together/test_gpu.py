"""On an accelerator, batches move to it, and no step waits for it."""

import copy

import pytest
import torch
from fit_callbacks import (
    AdaptiveGradientClipping,
    CheckpointSaver,
    ConsoleLogger,
    GradientClipping,
    Mixup,
    ModelEma,
    TensorBoard,
    Timer,
)
from fit_core import Callback, Runner
from fit_metrics import F1, Accuracy
from torch import nn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs an accelerator: hatch test -m gpu"),
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


CALLBACKS = {
    "nothing": lambda folder: [],
    "average": lambda folder: [ModelEma(0.9)],
    "clipping": lambda folder: [GradientClipping(1.0), AdaptiveGradientClipping()],
    "mixing": lambda folder: [Mixup(3)],
    "logs": lambda folder: [ConsoleLogger(), TensorBoard(folder, every=1000), Timer()],
    "saver": lambda folder: [CheckpointSaver(folder)],
}


@pytest.mark.parametrize("options", [{}, {"use_bf16": True}, {"accumulate_steps": 2}, {"use_fp16": True}], ids=str)
@pytest.mark.parametrize("callbacks", CALLBACKS)
def test_no_step_waits_for_the_accelerator(options, callbacks, tmp_path):
    device, model, batches = parts()
    if device.type != "cuda":
        pytest.skip("only CUDA reports a wait")

    class NoWaits(Callback):
        def on_batch_begin(self, state):
            if state.is_train and state.batch_idx == 1:
                torch.cuda.set_sync_debug_mode("error")

        def on_batch_end(self, state):
            if state.batch_idx == len(batches) - 2:
                torch.cuda.set_sync_debug_mode("default")

    pinned = [(input.pin_memory(), target.pin_memory()) for input, target in batches]
    # In fp16 the scaler asks the device whether to step, unless the kernels of a fused optimizer do so.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    every = [*CALLBACKS[callbacks](tmp_path), NoWaits()]
    metrics = [Accuracy(1), F1(num_classes=3)] if callbacks != "mixing" else []
    try:
        Runner(model, optimizer, nn.CrossEntropyLoss(), metrics, callbacks=every, **options).fit(pinned)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_checkpoint_has_no_tensors_of_the_accelerator(tmp_path):
    _, model, batches = parts()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
    callbacks = [ModelEma(0.9), GradientClipping(1.0), CheckpointSaver(tmp_path)]
    Runner(model, optimizer, nn.CrossEntropyLoss(), callbacks=callbacks).fit(batches)
    state = torch.load(tmp_path / "last.pt", weights_only=True)

    def tensors(value):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)):
            for part in value.values() if isinstance(value, dict) else value:
                yield from tensors(part)

    assert {tensor.device.type for tensor in tensors(state)} == {"cpu"}


def test_equal_scores_count_as_on_the_cpu():
    device = torch.accelerator.current_accelerator()
    scores, target = torch.randint(3, (1000, 8)).float(), torch.randint(8, (1000,))
    values = []
    for place in ("cpu", device):
        metric = Accuracy(1, 3).to(place)
        metric.update(scores.to(place), target.to(place))
        values.append({name: float(value) for name, value in metric.compute().items()})
    assert values[0] == values[1]


def test_reduce_overhead_with_accumulation_is_right_or_says_what_to_do():
    device, model, batches = parts()
    if device.type != "cuda":
        pytest.skip("only CUDA captures graphs")
    ours, notes = copy.deepcopy(model), ""
    compiled = torch.compile(ours, mode="reduce-overhead")
    Runner(model, torch.optim.SGD(model.parameters(), 0.1), nn.CrossEntropyLoss(), accumulate_steps=2).fit(batches * 3)
    runner = Runner(compiled, torch.optim.SGD(ours.parameters(), 0.1), nn.CrossEntropyLoss(), accumulate_steps=2)
    try:
        runner.fit(batches * 3)
    except RuntimeError as error:
        notes = "".join(error.__notes__)
    is_right = all(torch.allclose(a, b) for a, b in zip(model.parameters(), ours.parameters(), strict=True))
    assert is_right or "use fit_callbacks.CompiledStep" in notes


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
