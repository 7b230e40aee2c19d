"""Remember how far a run has come to graphs, so that a resumed run uses them for the same batches."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Progress"]

WARM_UP = 2
"""How many batches of a shape run as usual before a graph is recorded."""
GRAPHS = 24
"""How many graphs there may be, for shapes and places in an accumulation window."""
AGAIN = 3
"""How often graphs are recorded again before it is asked whether they are worth it."""


@dataclass
class Progress:
    """Count batches, graphs and changes of a run. A checkpoint contains it.

    Attributes:
        seen: how many batches have run as usual, by the repr of their shapes and their place in an accumulation window.
            `WARM_UP + 1` if there is a graph for them.
        digest: what the step depended on when they were counted, see `Guard.digest`. Empty before the first batch.
        recorded_again: how often that has changed.
        replays: how many steps were made by a graph.
        gave_up: why the run trains without graphs since it had some. A resumed run would not find this reason.
    """

    seen: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    recorded_again: int = 0
    replays: int = 0
    gave_up: str | None = None

    @property
    def graphs(self) -> int:
        """How many graphs there are, or were before the resume."""
        return sum(count > WARM_UP for count in self.seen.values())

    @property
    def is_full(self) -> bool:
        """Whether there are too many shapes to count more of them."""
        return len(self.seen) >= 10 * GRAPHS

    def warms_up(self, name: str) -> bool:
        """Count a batch, and return whether it is one of the first of its kind, which run as usual."""
        seen = self.seen.get(name, 0)
        if seen >= WARM_UP or self.is_full:
            return False
        self.seen[name] = seen + 1
        return True

    def may_record(self, name: str) -> bool:
        """Return whether batches of a kind may have a graph. One that there was before the resume is recorded again."""
        seen = self.seen.get(name, 0)
        return seen > WARM_UP or (seen == WARM_UP and self.graphs < GRAPHS)

    def had_graph(self, name: str) -> bool:
        """Return whether batches of a kind had a graph before the resume."""
        return self.seen[name] > WARM_UP

    def note_graph(self, name: str) -> None:
        """Note that batches of a kind have a graph."""
        self.seen[name] = WARM_UP + 1

    def count_change(self) -> bool:
        """Count a change of what the graphs depend on, and return whether graphs are still worth it."""
        self.recorded_again += 1
        return self.recorded_again <= AGAIN or self.replays >= 20 * self.recorded_again
