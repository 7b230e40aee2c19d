"""The console: a line an epoch in a file, a bar where somebody watches, values read only when it is redrawn."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import fit_callbacks.console
import pytest
import torch
from fit_callbacks import ConsoleLogger, plot_history
from fit_core import Callback, Runner
from torch import nn

BATCHES = [(torch.ones(2, 1), torch.zeros(2, 1))] * 5


def error(output, target):
    return (output - target).abs().mean()


def runner(*callbacks, lr=0.1):
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    return Runner(model, torch.optim.SGD(model.parameters(), lr=lr), nn.MSELoss(), [error], callbacks)


def test_a_file_gets_one_plain_line_an_epoch(capsys):
    history = runner(ConsoleLogger()).fit(BATCHES, epochs=2, val_loader=BATCHES)
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    for number, (line, row) in enumerate(zip(lines, history, strict=True), 1):
        values = [f"{row[key]:.4f}" for key in ("train/loss", "train/error", "val/loss", "val/error")]
        shown = "train loss {} error {}  val loss {} error {}".format(*values)
        assert re.fullmatch(rf"Epoch {number}/2  {shown}  lr 1.0e-01  \d+\.\ds  \d+ samples/s \*", line)


def test_the_star_marks_the_best_loss_only(capsys):
    runner(ConsoleLogger(), lr=1.5).fit(BATCHES, epochs=3)  # diverges
    assert [line.endswith("*") for line in capsys.readouterr().out.splitlines()] == [True, False, False]


def test_the_best_loss_is_remembered_over_a_resume():
    console = ConsoleLogger()
    runner(console).fit(BATCHES)
    other = ConsoleLogger()
    other.load_state_dict(console.state_dict())
    assert other.best.value == console.best.value is not None


def test_other_ranks_are_silent(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    runner(ConsoleLogger()).fit(BATCHES, epochs=2)
    assert capsys.readouterr() == ("", "")


def test_values_are_read_only_when_the_bar_was_redrawn(monkeypatch):
    reads = []
    monkeypatch.setattr(fit_callbacks.console, "_running", lambda state: reads.append(state.batch_idx) or {})

    class Bar:
        def __init__(self, **options):
            self.count = 0

        def update(self):
            self.count += 1
            return self.count == 3

        def set_postfix(self, values, refresh):
            assert not refresh

        def close(self):
            pass

        write = staticmethod(lambda text, file: None)

    monkeypatch.setattr(fit_callbacks.console, "tqdm", Bar)
    runner(ConsoleLogger()).fit(BATCHES)
    assert reads == [2]


def test_the_bar_is_closed_after_an_exception():
    class Fail(Callback):
        def on_batch_end(self, state):
            raise RuntimeError("stop")

    console = ConsoleLogger()
    with pytest.raises(RuntimeError):
        runner(console, Fail()).fit(BATCHES)
    assert console._bar is None


SCRIPT = """
import torch
from torch import nn
from fit_callbacks import ConsoleLogger
from fit_core import Runner
model = nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
batches = [(torch.ones(2, 1), torch.zeros(2, 1))] * 300
Runner(model, optimizer, nn.MSELoss(), (), [ConsoleLogger(interval=1e-6)]).fit(batches, val_loader=batches)
"""


def test_a_terminal_gets_a_bar_with_the_running_loss():
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=slave, stderr=slave)
    os.close(slave)
    screen = b""
    while True:
        try:
            chunk = os.read(master, 1 << 16)
        except OSError:  # Linux says so when the other end is closed
            break
        if not chunk:
            break
        screen += chunk
    os.close(master)
    assert process.wait() == 0
    text = screen.decode()
    assert re.search(r"Epoch 1/1: +\d+%\|.*\| \d+/300 \[.*loss=\d\.\d{4}", text)
    assert "Validation:" in text
    assert re.search(r"Epoch 1/1  train loss \d\.\d{4}  val loss", text)


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


def test_plot_history_of_nothing_says_so():
    with pytest.raises(ValueError, match="no epoch was completed"):
        plot_history([])


def test_importing_is_light():
    code = "import sys, fit_callbacks; print(*(m for m in ('matplotlib', 'tensorboard') if m in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
