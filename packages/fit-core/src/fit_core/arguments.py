"""Answer arguments of other libraries with the line to type here."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

__all__ = ["ONE_LOADER", "no_other_arguments"]

ONE_LOADER = "Pass one loader of pairs: fit(DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True))"
_TO_RUNNER = "Pass them to the Runner: Runner(..., {0}=[...])"
_TO_FIT = "Pass it to fit: runner.fit(train_loader, epochs=5, val_loader=val_loader)"

_ANSWERS = {
    "fit": {
        "x": ONE_LOADER,
        "y": ONE_LOADER,
        "batch_size": "Pass it to the loader: DataLoader(dataset, batch_size=32)",
        "shuffle": "Pass it to the loader: DataLoader(dataset, shuffle=True)",
        "validation_data": "Write val_loader=DataLoader(val_dataset, batch_size=32)",
        "val_data": "Write val_loader=DataLoader(val_dataset, batch_size=32)",
        "val_dataloaders": "Write val_loader=...",
        "valid_loader": "Write val_loader=...",
        "validation_split": "Split the dataset with torch.utils.data.random_split, and pass val_loader=...",
        "validation_steps": "Write val_steps=...",
        "validation_freq": "Write validate_every=...",
        "max_epochs": "Write epochs=...",
        "num_epochs": "Write epochs=...",
        "initial_epoch": "A resumed run continues at its epoch: CheckpointSaver(folder, resume=True)",
        "ckpt_path": "Add a callback: Runner(..., callbacks=[CheckpointSaver(folder, resume=True)])",
        "callbacks": _TO_RUNNER.format("callbacks"),
        "metrics": _TO_RUNNER.format("metrics"),
        "verbose": "Add a callback that prints: Runner(..., callbacks=[ConsoleLogger()])",
        "class_weight": "Pass it to the loss: nn.CrossEntropyLoss(weight=torch.tensor([...]))",
        "sample_weight": "Return it from the dataset and weigh the loss in Runner.forward",
    },
    "Runner": {
        "loss": "Write criterion=...",
        "loss_fn": "Write criterion=...",
        "lr": "Pass it to the optimizer: torch.optim.Adam(model.parameters(), lr=1e-3)",
        "scheduler": "Add a callback: callbacks=[LRScheduler(scheduler)]",
        "lr_scheduler": "Add a callback: callbacks=[LRScheduler(scheduler)]",
        "gradient_clip_val": "Add a callback: callbacks=[GradientClipping(1.0)]",
        "max_grad_norm": "Add a callback: callbacks=[GradientClipping(1.0)]",
        "accumulate_grad_batches": "Write accumulate_steps=...",
        "gradient_accumulation_steps": "Write accumulate_steps=...",
        "precision": "Write use_bf16=True or use_fp16=True",
        "mixed_precision": "Write use_bf16=True or use_fp16=True",
        "device": 'Batches follow the model. Move it before you create the optimizer: model.to("cuda")',
        "accelerator": 'Batches follow the model. Move it before you create the optimizer: model.to("cuda")',
        "devices": "Start the processes with fit_distributed.launch",
        "strategy": "Start the processes with fit_distributed.launch, and wrap the model: parallel(model)",
        "logger": 'Add a callback: callbacks=[TensorBoard("runs/a")]',
        "epochs": _TO_FIT,
        "max_epochs": _TO_FIT,
        "train_loader": _TO_FIT,
        "val_loader": _TO_FIT,
    },
}

_NAMES = {
    "fit": ("epochs", "val_loader", "steps_per_epoch", "val_steps", "validate_every"),
    "Runner": ("optimizer", "criterion", "metrics", "callbacks", "accumulate_steps", "use_fp16", "use_bf16"),
}


def no_other_arguments(function: str, unknown: Mapping[str, Any]) -> None:
    """Refuse arguments that other libraries have.

    Args:
        function: `fit` or `Runner`.
        unknown: the arguments that it does not have.

    Raises:
        TypeError: there is one. The message says what to type.
    """
    for name in unknown:
        close = get_close_matches(name, _NAMES[function], n=1)
        see = "Runner" if function == "Runner" else "Runner.fit"
        hint = _ANSWERS[function].get(name) or (f"Did you mean {close[0]}=?" if close else f"See help({see})")
        raise TypeError(f"expected an argument of {function}, got {name}. {hint}")
