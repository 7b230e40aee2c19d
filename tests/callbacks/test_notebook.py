"""A notebook shows the right output: real cells, run by a real kernel."""

import re
import sys
from types import SimpleNamespace

import fit_callbacks.notebook
import pytest
from fit_callbacks import ConsoleLogger
from scene import batches, make

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

SETUP = """
import sys, time, torch
from torch import nn
from fit_callbacks import ConsoleLogger, LRFinder, plot_history
from fit_core import Callback, Runner

class Slow(Callback):
    def on_batch_end(self, state):
        time.sleep(0.01)

def error(output, target):
    return (output - target).abs().mean()

def make(*callbacks):
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    return Runner(model, optimizer, nn.MSELoss(), [error], callbacks)

batches = [(torch.ones(2, 1), torch.zeros(2, 1))] * 10
runner = make(ConsoleLogger(interval=0.05), Slow())
history = runner.fit(batches, epochs=25, val_loader=batches)
"""
FINDER = """
finder = LRFinder(steps=10)
make(finder).fit(batches)
finder.plot()
"""
CELLS = [
    SETUP,
    "history",
    "print(history[0])",
    "plot_history(runner)",
    FINDER,
    "assert 'matplotlib.pyplot' not in sys.modules and 'ipywidgets' not in sys.modules",
    "import matplotlib.pyplot",
    "plot_history(history)",
    "runner.evaluate(batches)",
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The outputs of each cell, and every message of the kernel that changed one of them."""
    seen = []

    class Client(nbclient.NotebookClient):
        def process_message(self, message, cell, cell_index):
            seen.append((cell_index, message["msg_type"], message["content"]))
            return super().process_message(message, cell, cell_index)

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    Client(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path_factory.getbasetemp()}}
    ).execute()
    return [cell.outputs for cell in notebook.cells], seen


def test_a_run_is_one_live_output(outputs):
    cells, _ = outputs
    (output,) = cells[0]
    html = output["data"]["text/html"]
    rows = re.findall(r"<tr.*?>(.*?)</tr>", html)
    names = re.findall(r"<th>(.*?)</th>", rows[0])
    assert names == [
        *("epoch", "train/loss", "train/error", "val/loss", "val/error"),
        *("lr", "time", "left", "samples/s", ""),
    ]
    assert "5 earlier epochs" in rows[1]
    assert [re.search(r"<td>(.*?)</td>", row)[1] for row in rows[2:]] == [f"{number}/25" for number in range(6, 26)]
    assert html.count("<td>*</td>") == 1
    assert rows[-1].endswith("<td>*</td>")
    assert html.count("data:image/png;base64,") == 1
    assert "<progress" not in html


def test_progress_and_curve_are_updated_while_it_trains(outputs):
    updates = [
        content["data"]["text/html"]
        for cell, kind, content in outputs[1]
        if cell == 0 and kind in ("display_data", "update_display_data")
    ]
    assert len(updates) > 10
    assert any(
        re.search(r'<progress value="\d+" max="10"></progress> Epoch +3/25, batch', update) for update in updates
    )
    assert any("Validation, batch" in update for update in updates)
    assert "&ensp;loss 0." in updates[0]
    pictures = {picture for update in updates for picture in re.findall(r"base64,([^\"]+)", update)}
    assert len(pictures) > 1
    assert sum(kind == "display_data" for cell, kind, _ in outputs[1] if cell == 0) == 1


def test_a_history_is_a_table_and_prints_as_a_list(outputs):
    cells, _ = outputs
    (output,) = cells[1]
    assert output["data"]["text/html"].count("<tr") == 26
    assert output["data"]["text/plain"].startswith("[{'epoch': 1,")
    assert cells[2][0]["text"].startswith("{'epoch': 1, 'train/loss': ")


@pytest.mark.parametrize("cell", [3, 4, 7])
def test_a_figure_is_shown_once_with_pyplot_and_without(outputs, cell):
    (output,) = outputs[0][cell]
    assert output["output_type"] == "execute_result"
    assert len(output["data"]["image/png"]) > 1000


def test_evaluate_alone_leaves_its_result(outputs):
    shown = [output for output in outputs[0][8] if output["output_type"] == "execute_result"]
    assert "val/loss" in shown[0]["data"]["text/plain"]
    assert not any("<progress" in output["data"].get("text/html", "") for output in outputs[0][8])


class Handle:
    def __init__(self):
        self.shown = []

    def update(self, html):
        self.shown.append(html)


@pytest.fixture
def handles(monkeypatch):
    """IPython as far as it is asked, in this process."""
    made = []

    def display(html, display_id):
        made.append(Handle())
        made[-1].update(html)
        return made[-1]

    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=None), version_info=(9, 0))
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))
    return made


def test_without_matplotlib_there_is_the_table(handles, monkeypatch, capsys):
    monkeypatch.setattr(fit_callbacks.notebook, "find_spec", lambda name: None)
    runner = make(ConsoleLogger())
    for _ in range(2):
        runner.fit(batches(), epochs=3, val_loader=batches())
    assert len(handles) == 2
    for handle in handles:
        assert "<td>3/3</td>" in handle.shown[-1]
        assert "<img" not in handle.shown[-1]
    assert capsys.readouterr() == ("", "")


def test_many_quick_epochs_are_drawn_rarely(handles):
    make(ConsoleLogger()).fit(batches()[:1], epochs=300)
    (handle,) = handles
    assert "<td>300/300</td>" in handle.shown[-1]
    assert len(handle.shown) < 50
    pictures = {shown.partition("base64,")[2] for shown in handle.shown}
    assert len(pictures) < 10
