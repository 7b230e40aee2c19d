"""Provide a figure that notebooks show without pyplot. Importing this module imports matplotlib."""

from __future__ import annotations

from io import BytesIO
from os import PathLike
from pathlib import Path

try:
    from matplotlib import figure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'drawing needs matplotlib, which is not installed. Install it: pip install "fit-callbacks[plot]"',
        name=error.name,
    ) from None

__all__ = ["Figure", "MaxNLocator"]


class Figure(figure.Figure):
    """Show a matplotlib figure in notebooks, also if pyplot was not imported before."""

    def save(self, path: str | PathLike[str] | None) -> None:
        """Save the picture, unless the path is None. Folders are made."""
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.savefig(path, dpi=120)

    def png(self) -> bytes:
        """Return the picture."""
        picture = BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()
