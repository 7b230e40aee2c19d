"""A history as a picture."""

import pytest
from fit_callbacks import plot_history
from regression import BATCHES, runner


def test_plot_history_draws_every_curve(tmp_path):
    history = [
        {"epoch": 1, "train/loss": 1.0, "train/Acc@1": 0.2},
        {"epoch": 2, "train/loss": 0.5, "train/Acc@1": 0.4, "val/loss": 0.7, "val/Acc@1": 0.3},
    ]
    figure = plot_history(history, tmp_path / "new" / "curves.png")
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert panels.keys() == {"loss", "Acc@1"}
    curves = {line.get_label(): line.get_xydata().tolist() for line in panels["loss"].lines}
    assert curves == {"train": [[1.0, 1.0], [2.0, 0.5]], "val": [[2.0, 0.7]]}


def test_plot_history_takes_a_runner_and_is_a_picture():
    run = runner()
    run.fit(BATCHES, epochs=2)
    figure = plot_history(run)
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_plot_history_of_nothing_says_so():
    with pytest.raises(ValueError, match="expected a history of one epoch or more"):
        plot_history([])
    with pytest.raises(ValueError, match="expected a history of one epoch or more"):
        plot_history(runner())
