"""Write down what fit-core promises: every public name, signature, hook and state field.

Run `python tests/protocol/surface.py > tests/protocol/surface.txt` after a change that is meant. The change then
needs an entry under Protocol in the changelog, and a new version of fit-core.
"""

import dataclasses
import inspect
import typing

import fit_core
import fit_core.testing


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


def _lines(name, value):
    if inspect.isfunction(value):
        yield f"{name}{_signature(value)}"
    elif isinstance(value, list):
        yield f"{name} = [{', '.join(part.__name__ for part in value)}]"
    elif not inspect.isclass(value) or typing.get_origin(value):  # Python 3.10 takes list[...] for a class
        yield f"{name} = {value}"
    elif dataclasses.is_dataclass(value):
        yield f"class {name}"
        yield from (f"  {field.name}: {field.type}" for field in dataclasses.fields(value) if field.name[0] != "_")
        yield from _members(value)
    else:
        is_protocol = getattr(value, "_is_protocol", False)
        yield f"class {name}" if is_protocol else f"class {name}{_signature(value.__init__)}"
        yield from _members(value)


def surface():
    """Return the public surface of fit-core as text, one name per line."""
    parts = [(fit_core, ""), (fit_core.testing, "testing.")]
    names = [(part, f"{prefix}{name}", name) for part, prefix in parts for name in sorted(part.__all__)]
    return "".join(f"{line}\n" for part, shown, name in names for line in _lines(shown, getattr(part, name)))


if __name__ == "__main__":
    print(surface(), end="")
