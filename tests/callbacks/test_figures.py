"""Without matplotlib, what draws says what to install, and a run learns of it before its first step."""

import sys

import pytest
from fit_callbacks import ConfusionMatrix, LRFinder, TensorBoard, plot_history
from scene import Matrix, batches, make


@pytest.fixture(autouse=True)
def no_matplotlib(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "fit_callbacks.figure", raising=False)
    monkeypatch.delattr(sys.modules["fit_callbacks"], "figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


INSTALL = r'which is not installed\. Install it: pip install "fit-callbacks\[plot\]"'


def test_plots_say_what_to_install():
    with pytest.raises(ModuleNotFoundError, match=INSTALL):
        plot_history([{"epoch": 1, "train/loss": 1.0}])
    finder = LRFinder()
    finder.losses = [1.0]
    with pytest.raises(ModuleNotFoundError, match=INSTALL):
        finder.plot()


def test_a_confusion_matrix_says_so_before_the_first_step(tmp_path):
    runner = make(ConfusionMatrix(TensorBoard(tmp_path)), metrics=[Matrix()])
    with pytest.raises(ModuleNotFoundError, match=INSTALL):
        runner.fit(batches(), val_loader=batches())
    assert runner.state.global_step == 0
