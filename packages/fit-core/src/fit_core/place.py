"""Convert a place in the training data after a change of batch size, processes or steps."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

__all__ = ["convert"]


def convert(place: Mapping[str, Any], then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the place that is as far into the data, in whole batches of the resumed run.

    The batches of an open accumulation window come again. An epoch is complete if it has had as many batches as an
    epoch has now, or more.

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
    if is_last and taken and now["steps_per_epoch"] is None and size is not None:
        taken = size
    # These are states after the old batches.
    old = ("loader", "generators") if taken else ("loader",)
    kept = {name: value for name, value in place.items() if name not in old}
    return {**kept, "batches_done": batches, "taken": taken, "is_last": is_last}


def _batches_per_batch(then: Mapping[str, Any], now: Mapping[str, Any]) -> Fraction:
    """Return how many batches now have as many samples as one had then, over all processes."""
    samples = [settings["batch_size"] and settings["batch_size"] * settings["processes"] for settings in (then, now)]
    if all(samples):
        return Fraction(*samples)
    sizes = then["batches per epoch"], now["batches per epoch"]
    if all(sizes) and then["steps_per_epoch"] is None and now["steps_per_epoch"] is None:
        return Fraction(sizes[1], sizes[0])
    return Fraction(then["processes"], now["processes"])
