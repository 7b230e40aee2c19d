"""Arguments of other libraries, in fit and in the Runner, get the line to type here."""

import pytest
import torch
from fit_core import Runner
from torch import nn

LOSS = nn.MSELoss()
BATCHES = [(torch.zeros(2, 1), torch.zeros(2, 1))]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            (BATCHES,),
            {"batch_size": 32},
            r"expected an argument of fit, got batch_size. Pass it to the loader: DataLoader\(dataset, batch",
        ),
        ((BATCHES,), {"validation_data": BATCHES}, r"got validation_data. Write val_loader=DataLoader"),
        ((BATCHES,), {"validation_split": 0.1}, r"got validation_split. .*random_split, and pass val_loader="),
        ((BATCHES,), {"verbose": 1}, r"got verbose. .*Runner\(..., callbacks=\[ConsoleLogger\(\)\]\)"),
        ((BATCHES,), {"callbacks": []}, r"got callbacks. Pass them to the Runner"),
        ((BATCHES,), {"epoch": 3}, r"argument of fit, got epoch. Did you mean epochs=\?"),
        ((BATCHES,), {"colour": 3}, r"argument of fit, got colour. See help"),
        (
            (torch.zeros(2, 1), torch.zeros(2, 1)),
            {},
            r"got Tensor. Pass one loader of pairs: fit\(DataLoader\(TensorDat",
        ),
        ((BATCHES, BATCHES), {}, r"got list. Pass it by name: fit\(train_loader, val_loader=...\)"),
        ((BATCHES, "5"), {}, r"expected epochs to be a whole number, got '5'$"),
        ((BATCHES, None), {}, r"expected epochs to be a whole number, got None$"),
        ((BATCHES,), {"validate_every": None}, r"expected validate_every to be a whole number, got None$"),
        ((BATCHES, torch.tensor(5)), {}, r"epochs to be a whole number, got tensor\(5\). Write int\(epochs\)$"),
        ((BATCHES,), {"ckpt_path": "last"}, r"got ckpt_path. Add a callback: .*CheckpointSaver\(folder, resume=True"),
    ],
)
def test_arguments_of_other_libraries_get_the_line_to_type(arguments, options, message):
    model = nn.Linear(1, 1)
    with pytest.raises(TypeError, match=message):
        Runner(model, sgd(model), LOSS).fit(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 5}, r"argument of Runner, got max_epochs. Pass it to fit: runner.fit\(train_loader, epochs=5"),
        ({"gradient_clip_val": 1.0}, r"got gradient_clip_val. Add a callback: callbacks=\[GradientClipping\(1.0\)\]"),
        ({"device": "cuda"}, r'got device. Batches follow the model. .*: model.to\("cuda"\)'),
        ({"precision": 16}, r"got precision. Write use_bf16=True or use_fp16=True"),
        ({"metric": []}, r"got metric. Did you mean metrics=\?"),
        ({"colour": 3}, r"got colour. See help\(Runner\)"),
        ({"accumulate_steps": None}, r"expected accumulate_steps to be a whole number, got None"),
    ],
)
def test_arguments_of_other_libraries_get_the_line_to_type_in_the_runner_too(options, message):
    model = nn.Linear(1, 1)
    with pytest.raises(TypeError, match=message):
        Runner(model, sgd(model), LOSS, **options)
