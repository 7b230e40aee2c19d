"""A callback refuses an argument of the wrong type or out of range when it is made, and names the argument."""

import inspect

import fit_callbacks
import pytest
import torch
from fit_callbacks import Phase, TensorBoard
from torch import nn
from torch.optim.lr_scheduler import StepLR

NEEDED = {
    "board": lambda folder: TensorBoard(folder),
    "end": lambda folder: 1.0,
    "log": lambda folder: print,
    "log_dir": lambda folder: folder,
    "lr": lambda folder: 0.1,
    "after": lambda folder: 1,
    "names": lambda folder: "head",
    "path": lambda folder: folder / "log.csv",
    "phases": lambda folder: [Phase(0, 1, lr=0.1)],
    "save_dir": lambda folder: folder,
    "scheduler": lambda folder: StepLR(torch.optim.SGD(nn.Linear(1, 1).parameters()), 1),
    "start": lambda folder: 0.0,
}
KINDS = [
    kind
    for name in fit_callbacks.__all__
    if inspect.isclass(kind := getattr(fit_callbacks, name)) and not issubclass(kind, Exception)
]
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
ARGUMENTS = [
    pytest.param(kind, parameter, id=f"{kind.__name__}.{parameter.name}")
    for kind in KINDS
    for parameter in inspect.signature(kind).parameters.values()
    if parameter.kind in NAMED and not isinstance(parameter.default, bool)
]
OPTIONS = ("factor", "patience", "threshold", "cooldown", "min_lr", "eps")


def wrong_values(parameter):
    """Return values that no argument with this annotation can have."""
    annotation = str(parameter.annotation)
    values = [object()]
    if parameter.default is not None and parameter.name != "value":
        values.append(None)
    if "str" not in annotation:
        values.append("many")
    if annotation.startswith(("int", "float")):
        values += [float("nan"), -1, True]
    if annotation.startswith("int"):
        values += [1.5]
    return values


def make(kind, folder, **given):
    signature = inspect.signature(kind).parameters.values()
    needed = {p.name: NEEDED[p.name](folder) for p in signature if p.kind in NAMED and p.default is p.empty}
    if given.keys() == {"norm_type"}:
        needed["max_norm"] = 1.0
    return kind(**{**needed, **given})


@pytest.mark.parametrize(("kind", "parameter"), ARGUMENTS)
def test_a_wrong_argument_is_named(kind, parameter, tmp_path):
    optional = kind.__name__ in ("CheckpointSaver", "Profiler") and parameter.name in ("resume", "options")
    for value in wrong_values(parameter):
        if value is None and (optional or "None" in str(parameter.annotation)):
            continue
        with pytest.raises((TypeError, ValueError)) as caught:
            make(kind, tmp_path, **{parameter.name: value})
        assert parameter.name in str(caught.value), (value, caught.value)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("value", ["many", None, -1, float("nan"), object()])
def test_an_option_of_reduce_lr_on_plateau(option, value):
    with pytest.raises((TypeError, ValueError), match=f"{option} to be"):
        fit_callbacks.ReduceLROnPlateau(**{option: value})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fit_callbacks.PhasesScheduler([Phase(0, 1, lr=0.1)], factors=0.1),
            "expected factors to be a list of numbers, one per parameter group, got 0.1",
        ),
        (lambda: fit_callbacks.ModelEma(1.0), "expected decay to be 0 or more and below 1, got 1.0"),
        (lambda: fit_callbacks.ModelEma("0.9"), "expected decay to be a number, got '0.9'"),
        (lambda: fit_callbacks.Mixup(p=1.5), "expected p to be 0 or more and at most 1, got 1.5"),
        (lambda: fit_callbacks.GradientClipping(0), "expected max_norm to be above 0, got 0"),
        (lambda: fit_callbacks.Freeze(3), 'expected names to be a name such as "head", or a list of names, got 3'),
        (lambda: fit_callbacks.Report(3), "expected log to be a function such as wandb.log, got 3"),
        (lambda: fit_callbacks.CheckpointSaver("runs", keep=0), "expected keep to be 1 or more, got 0"),
        (lambda: fit_callbacks.ReduceLROnPlateau(factor=2), "expected factor to be above 0 and below 1, got 2"),
        (lambda: Phase(2, 1, lr=0.1), "expected end to be above 2, got 1"),
        (
            lambda: fit_callbacks.GradientClipping(1.0, norm_type=float("nan")),
            "expected norm_type to be above 0, got nan",
        ),
        (lambda: fit_callbacks.Mixup(alpha=float("inf")), "expected alpha to be above 0 and finite, got inf"),
        (lambda: Phase(0, 1, lr=(0.1, "0")), "expected lr to be a number, got '0'"),
    ],
)
def test_what_the_message_says(call, message):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert str(caught.value) == message
