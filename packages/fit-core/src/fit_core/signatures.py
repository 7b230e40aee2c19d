"""Check that functions and methods of the user take the arguments with which the loop calls them."""

from __future__ import annotations

import inspect
from difflib import get_close_matches
from typing import Any

__all__ = ["check_order", "check_overrides"]

_TARGETS = {"y", "y_true", "y_test", "true", "target", "targets", "label", "labels", "ground_truth", "gt"}
_OUTPUTS = {"y_pred", "y_hat", "y_score", "y_prob", "y_proba", "pred", "preds", "prediction", "predictions", "output"}
_OUTPUTS |= {"outputs", "logits", "scores", "probs", "input"}

_ELSEWHERE = {
    "training_step": "Override forward, which sets state.output and state.loss. The Runner steps the optimizer",
    "validation_step": "Override forward, which is called in validation too, with state.is_train False",
    "configure_optimizers": "Pass the optimizer: Runner(model, optimizer, criterion)",
    "train_step": "Override forward, which sets state.output and state.loss. The Runner steps the optimizer",
    "compute_loss": "Override forward, which sets state.output and state.loss",
    "make_step": "Override _make_step",
}


def check_order(kind: str, value: Any) -> None:
    """Check that a criterion or a metric takes the output first.

    scikit-learn and Keras call functions with `(y_true, y_pred)`. The parameters' names say so.

    Args:
        kind: `criterion` or `metric`.
        value: a function, a module, or a metric with `update`.

    Raises:
        TypeError: its first parameter has the name of a target, and its second that of an output.
    """
    method = "update" if kind == "metric" and hasattr(value, "update") else "forward"
    names = _parameters(getattr(value, method, value))[:2]
    if len(names) == 2 and names[0] in _TARGETS and names[1] in _OUTPUTS:
        inside = getattr(value, "func", value)  # of a partial
        name = getattr(inside, "__name__", type(inside).__name__)
        raise TypeError(
            f"expected the {kind} {name} to take (output, target), got ({', '.join(names)}). Swap its parameters, or "
            f"wrap it: lambda output, target: {name}(target, output)"
        )


def check_overrides(kind: type, base: type) -> None:
    """Check that a subclass of Runner overrides what the loop calls, as the loop calls it.

    Args:
        kind: the class of the Runner.
        base: `Runner` itself.

    Raises:
        TypeError: `forward` or `_make_step` takes arguments. Or neither is overridden, and a method has the name that
            it would have in another library, or almost their name.
    """
    parts = [part for part in reversed(kind.__mro__) if not issubclass(base, part)]
    own = {name: value for part in parts for name, value in vars(part).items()}
    called: list[str] = [name for name in ("forward", "_make_step") if name in own]
    for name in called:
        if parameters := _parameters(own[name], required=True)[1:]:
            raise TypeError(
                f"expected {kind.__name__}.{name} to take (self), got (self, {', '.join(parameters)}). The batch is in "
                "self.state.input and self.state.target, and the model is self.state.model"
            )
    if called:  # It may call the others.
        return
    for name in own:
        close = get_close_matches(name, ("forward", "_make_step"), n=1, cutoff=0.8)
        hint = _ELSEWHERE.get(name) or (f"Did you mean {close[0]}?" if close else "")
        if hint:
            raise TypeError(f"expected {kind.__name__} to override forward or _make_step, got {name}. {hint}")


def _parameters(function: Any, *, required: bool = False) -> list[str]:
    """Return the names of the positional parameters of a function, or an empty list if they are unknown."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of a class in C, or of no function at all
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in parameters if p.kind in kinds and not (required and p.default is not p.empty)]
