"""Writes down what fit-core promises: every public name, signature, hook and state field.

``python tests/protocol/surface.py > tests/protocol/surface.txt`` after a change that is meant; the change then needs a
line under Protocol in the changelog and a step of fit-core's version.
"""

import dataclasses
import inspect
import typing

import fit_core


def _signature(function):
    return str(inspect.signature(function)).replace("'", "")


def _members(cls):
    for name, member in sorted(vars(cls).items()):
        if name.startswith("_") and name != "_make_step":
            continue
        if isinstance(member, property):
            yield f"  {name}: {member.fget.__annotations__['return']} (read only)"
        elif inspect.isfunction(member):
            yield f"  {name}{_signature(member)}"


def surface():
    """The public surface of fit-core as text, a line each."""
    lines = []
    for name in sorted(fit_core.__all__):
        value = getattr(fit_core, name)
        if not inspect.isclass(value) or typing.get_origin(value):  # Python 3.10 takes list[...] for a class
            lines.append(f"{name} = {value}")
            continue
        lines.append(f"class {name}")
        if not getattr(value, "_is_protocol", False):
            lines[-1] += _signature(value.__init__) if not dataclasses.is_dataclass(value) else ""
        if dataclasses.is_dataclass(value):
            lines += [f"  {field.name}: {field.type}" for field in dataclasses.fields(value) if field.name[0] != "_"]
        lines += _members(value)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(surface(), end="")
