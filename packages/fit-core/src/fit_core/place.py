"""Convert a place in the training data to other batches than those it was saved with."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

__all__ = ["convert"]


def convert(place: Mapping[str, Any], then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the place as far into the data, in whole batches of the run that is resumed.

    An accumulation window that was open is left out, so its batches come again. An epoch that has as many batches as
    one has now, or more, is complete.

    Args:
        place: a place in the data, as a Stream saves it.
        then: the settings of the run when it was saved.
        now: its settings now.
    """
    batches, taken = place["batches_done"], place["taken"]
    if not place["is_last"]:
        waiting = min(batches % then["accumulate_steps"], taken)
        batches, taken = batches - waiting, taken - waiting
    ratio = _batches_per_batch(then, now)
    taken = int(taken * ratio)
    if now["steps_per_epoch"] is None:
        batches = (int(batches * ratio) or batches) if place["is_last"] else taken
    elif now["steps_per_epoch"] != then["steps_per_epoch"]:
        batches = int(batches * ratio)
    size = now["batches per epoch"]
    is_last = place["is_last"] or (size is not None and batches >= size)
    # What the loader says of itself counts in its old batches.
    kept = {name: value for name, value in place.items() if name != "loader"}
    return {**kept, "batches_done": batches, "taken": taken, "is_last": is_last}


def _batches_per_batch(then: Mapping[str, Any], now: Mapping[str, Any]) -> Fraction:
    """Return how many batches have as many samples as one had, over all processes."""
    samples = [settings["batch_size"] and settings["batch_size"] * settings["processes"] for settings in (then, now)]
    if all(samples):
        return Fraction(*samples)
    sizes = then["batches per epoch"], now["batches per epoch"]
    if all(sizes) and then["steps_per_epoch"] is None and now["steps_per_epoch"] is None:
        return Fraction(sizes[1], sizes[0])
    return Fraction(then["processes"], now["processes"])
