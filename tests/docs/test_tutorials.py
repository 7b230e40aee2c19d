"""Run the tutorials that are more than blocks in a row: a program of several processes, and the cells of a notebook.

test_code_blocks.py runs the blocks of all of them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"


def blocks(name, kind="python"):
    return re.findall(rf"^```{kind}\n(.*?)^```", (TUTORIALS / name).read_text(), re.MULTILINE | re.DOTALL)


def test_one_process_and_two_print_the_numbers_of_the_page(tmp_path):
    (tmp_path / "train.py").write_text(blocks("several_gpus.md")[0])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "train.py"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    printed = re.findall(r"(\d) x \d+: ([\d.]+), ([\d.]+)", result.stdout)
    shown = re.findall(r"(\d) x \d+: ([\d.]+), ([\d.]+)", blocks("several_gpus.md", "text")[0])
    assert [row[0] for row in printed] == [row[0] for row in shown] == ["1", "2"]
    for (_, *numbers), (_, *wanted) in zip(printed, shown, strict=True):
        assert list(map(float, numbers)) == pytest.approx(list(map(float, wanted)), abs=2e-5)


def test_the_notebook_runs_as_cells(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in blocks("notebook.md")])
    client = nbclient.NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises if a cell does
    _, training, table, figure, *_ = (cell.outputs for cell in notebook.cells)
    (live,) = [output for output in training if "data" in output]
    assert "val" in live["data"]["text/html"]
    assert table[0]["data"]["text/html"].count("<tr>") == 5  # the head, and four epochs
    assert "image/png" in figure[0]["data"]
