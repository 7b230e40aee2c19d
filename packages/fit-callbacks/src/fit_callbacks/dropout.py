"""Change the dropout probability during training."""

from __future__ import annotations

from fit_core import Callback, RunnerState, unwrap
from torch import nn

from .arguments import check_number, check_whole, names_of
from .names import bare_name

__all__ = ["ScheduledDropout"]

KINDS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class ScheduledDropout(Callback):
    """Change the probability of the model's dropout layers linearly from epoch to epoch.

    It is `start` in the first epoch and `end` from epoch `epochs` on. Increasing it reduces overfitting in late
    epochs (Morerio et al. 2017, Curriculum Dropout). Decreasing it helps small models that underfit at first (Liu et
    al. 2023, Dropout Reduces Underfitting). It depends only on the epoch, so a resumed run continues the schedule.

    Args:
        start: the probability of the first epoch, 0..1.
        end: the probability from epoch `epochs` on.
        epochs: the number of epochs from `start` to `end`, 1 or more. None means the whole run.
        names: the names of the layers in the model, or the start of their names. By default all dropout layers.

    Raises:
        ValueError: an argument is out of range, or the names do not match any dropout layer.

    Examples:
        >>> ScheduledDropout(0.0, 0.3, epochs=20)
    """

    def __init__(self, start: float, end: float, *, epochs: int | None = None, names: tuple[str, ...] = ("",)) -> None:
        check_number("start", start, "[0, 1]")
        check_number("end", end, "[0, 1]")
        if epochs is not None:
            check_whole("epochs", epochs, 1)
        self.start = start
        self.end = end
        self.epochs = epochs
        self.names = names_of("names", names)
        self._layers: list[nn.Module] = []

    def on_begin(self, state: RunnerState) -> None:
        """Find the layers."""
        modules = unwrap(state.model).named_modules()
        layers = {bare_name(name): layer for name, layer in modules if isinstance(layer, KINDS)}
        self._layers = [layer for name, layer in layers.items() if name.startswith(self.names)]
        if not self._layers:
            raise ValueError(
                f"expected names that match dropout layers, got {', '.join(self.names)}. Pass the start of one of "
                f"{', '.join(layers) or 'none'}"
            )

    def on_epoch_begin(self, state: RunnerState) -> None:
        """Set the probability of this epoch."""
        last = (self.epochs or state.num_epochs) - 1
        fraction = min(1.0, state.epoch / last) if last else 1.0
        for layer in self._layers:
            layer.p = (1 - fraction) * self.start + fraction * self.end  # type: ignore[assignment]  # a dropout layer's float
