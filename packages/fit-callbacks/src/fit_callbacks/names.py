"""Name the parts of a model as its user does."""

from __future__ import annotations

__all__ = ["bare_name"]


def bare_name(name: str) -> str:
    """Return the name of a parameter or module without the marks of modules that were compiled by themselves."""
    return name.replace("_orig_mod.", "")
