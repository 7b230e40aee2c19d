"""The console: a table that fits the terminal, a bar where somebody watches, one line per epoch in a file."""

import re
import signal
import subprocess
import sys

import fit_callbacks.terminal
import pytest
import torch
from fit_callbacks import ConsoleLogger, LRScheduler
from fit_core import Callback, Runner
from regression import BATCHES, error, runner
from screens import terminal


class Metric:
    """A metric with a constant value."""

    def __init__(self, name, value=0.5):
        self.name, self.value = name, value

    def reset(self):
        pass

    def update(self, output, target):
        pass

    def compute(self):
        return self.value


NUMBER = r"-?\d+(?:\.\d*)?(?:e-?\d+)?"


def test_a_file_gets_a_header_and_one_line_per_epoch(capsys):
    history = runner(ConsoleLogger()).fit(BATCHES, epochs=2, val_loader=BATCHES)
    out, err = capsys.readouterr()
    assert err == ""
    above, names, *rows = out.splitlines()
    assert re.fullmatch(r" +-+ train -+ +-+ val -+", above)
    assert names.split() == ["epoch", "loss", "error", "loss", "error", "lr", "time", "left", "samples/s"]
    for number, (line, row) in enumerate(zip(rows, history, strict=True), 1):
        epoch, *numbers, lr, time, left, rate, star = line.split()
        assert epoch == f"{number}/2"
        assert [float(text) for text in numbers] == pytest.approx(
            [row[key] for key in ("train/loss", "train/error", "val/loss", "val/error")], rel=1e-3
        )
        assert (lr, star) == ("0.1", "*")
        assert re.fullmatch(r"\d\.\ds", time)
        assert re.fullmatch(r"\d+s", left)
        assert re.fullmatch(r"\d+", rate)


def test_the_learning_rate_is_that_of_the_epoch_although_a_schedule_has_set_the_next(capsys):
    schedule = LRScheduler(lambda optimizer, steps: torch.optim.lr_scheduler.StepLR(optimizer, 1), interval="epoch")
    history = runner(schedule, ConsoleLogger()).fit(BATCHES, epochs=2)
    shown = [float(line.split()[3]) for line in capsys.readouterr().out.splitlines()[2:]]
    assert shown == pytest.approx([row["lr"] for row in history]) == [0.1, 0.01]


def test_the_star_marks_the_best_loss_only(capsys):
    runner(ConsoleLogger(), lr=1.5).fit(BATCHES, epochs=3)  # diverges
    assert [line.endswith("*") for line in capsys.readouterr().out.splitlines()[2:]] == [True, False, False]


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


def test_the_header_is_printed_once_also_if_not_every_epoch_validates(capsys):
    runner(ConsoleLogger()).fit(BATCHES, epochs=4, val_loader=BATCHES, validate_every=2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert len(lines[2].removesuffix(" *")) == len(lines[3].removesuffix(" *"))  # empty cells


def test_each_run_has_a_header_and_new_columns_too(capsys):
    run = runner(ConsoleLogger())
    run.fit(BATCHES)
    run.fit(BATCHES)
    assert capsys.readouterr().out.count("epoch") == 2

    class Late(Callback):
        def on_epoch_end(self, state):
            if state.epoch == 2:
                state.logs["test/loss"] = 1.0

    runner(Late(), ConsoleLogger()).fit(BATCHES, epochs=5)
    out = capsys.readouterr().out
    assert out.count("epoch") == 2
    assert out.count("test") == 1


def test_the_time_left_is_that_of_the_epochs_to_come(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    class Slow(Callback):
        def on_epoch_end(self, state):
            clock[0] += 50

    runner(Slow(), ConsoleLogger()).fit(BATCHES, epochs=4)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[5] for row in rows] == ["2:30", "1:40", "50s", "0s"]


def test_a_collection_and_a_wrapper_of_torchmetrics_have_columns(monkeypatch):
    torchmetrics = pytest.importorskip("torchmetrics")
    options = {"task": "multiclass", "num_classes": 2}
    collection = torchmetrics.MetricCollection({"acc": torchmetrics.Accuracy(**options)}, prefix="all_")
    wrapper = torchmetrics.ClasswiseWrapper(torchmetrics.Accuracy(**options, average=None), ["cat", "dog"], "of_")
    curves = torchmetrics.ROC(**options)
    model = torch.nn.Linear(1, 2)
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.CrossEntropyLoss()
    data = [(torch.randn(4, 1), torch.tensor([0, 1, 0, 1]))] * 3
    with terminal(180, monkeypatch) as screen, pytest.warns(UserWarning, match="ROC is not logged"):
        Runner(model, optimizer, loss, [collection, wrapper, curves], [ConsoleLogger(1e-9)]).fit(data)
    names, row = screen.lines[-2:]
    assert names.split()[:5] == ["epoch", "loss", "all_acc", "of_cat", "of_dog"]
    assert all(0 <= float(value) <= 1 for value in row.split()[2:5])
    assert all(part in screen.bars[-1] for part in ("all_acc", "of_cat", "of_dog"))


def test_several_losses_and_nested_results_are_shown(capsys):
    run = runner(ConsoleLogger(), metrics=[Metric("f1", {"cat": 0.5, "deep": {"dog": torch.tensor(0.25)}})])
    run.state.criterion = lambda output, target: {"loss": (output - target).square().mean(), "kl": output.mean() * 1e-7}
    run.fit(BATCHES)
    above, names, row = capsys.readouterr().out.splitlines()
    assert re.findall(r"[a-z]\S*", above) == ["train", "train/deep"]
    assert names.split()[:5] == ["epoch", "loss", "kl", "cat", "dog"]
    assert row.split()[3:5] == ["0.5000", "0.2500"]


@pytest.mark.parametrize(
    ("columns", "others"), [(60, ["time"]), (80, ["lr", "time", "left"]), (120, ["lr", "time", "left", "samples/s"])]
)
def test_the_table_fits_the_terminal(columns, others, monkeypatch):
    with terminal(columns, monkeypatch) as screen:
        metrics = [Metric("Acc@1", 0.98765), Metric("Acc@5", 1.2345e-7)]
        runner(ConsoleLogger(), metrics=metrics).fit(BATCHES, epochs=10, val_loader=BATCHES)
    _, names, *rows = screen.lines
    assert names.split() == ["epoch", *["loss", "Acc@1", "Acc@5"] * 2, *others]
    assert len(rows) == 10
    for row in rows:
        assert len(row) < columns
        assert re.fullmatch(rf" *\d+/10(?: +{NUMBER}){{6}}.*", row)
        assert float(row.split()[3]) == pytest.approx(1.2345e-7, rel=0.2)


@pytest.mark.parametrize("columns", [30, 60, 80, 120])
def test_too_many_results_become_lines_of_whole_numbers(columns, monkeypatch):
    metrics = [Metric(f"metric_{number}", 0.12345) for number in range(12)]
    with terminal(columns, monkeypatch) as screen:
        runner(ConsoleLogger(), metrics=metrics).fit(BATCHES, epochs=2, val_loader=BATCHES)
    assert max(map(len, screen.lines)) < columns
    text = " ".join(screen.lines)
    assert all(text.count(f"metric_{number} 0.1235") == 4 for number in range(12))


def test_a_resized_terminal_gets_another_table(monkeypatch):
    class Resize(Callback):
        def on_epoch_begin(self, state):
            screen.resize([120, 120, 60, 60][state.epoch])

    with terminal(120, monkeypatch) as screen:
        runner(Resize(), ConsoleLogger(), metrics=[error, Metric("Acc@1")]).fit(BATCHES, epochs=4, val_loader=BATCHES)
    headers = [number for number, line in enumerate(screen.lines) if "epoch" in line]
    assert headers == [1, 5]
    assert [max(map(len, part)) < width for part, width in ((screen.lines[:4], 120), (screen.lines[4:], 60))]
    assert "samples/s" in screen.lines[1]
    assert "samples/s" not in screen.lines[5]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_bar_keeps_its_length_and_shows_whole_values(columns, monkeypatch):
    metrics = [Metric(f"metric_{number}", 0.12345) for number in range(12)]
    with terminal(columns, monkeypatch) as screen:
        runner(ConsoleLogger(interval=1e-6), metrics=metrics).fit(BATCHES * 40, val_loader=BATCHES)
    training = [bar for bar in screen.bars if bar.startswith("Epoch 1/1:")]
    late = training[len(training) // 2 :]
    assert any("loss=" in bar for bar in late)
    for bar in late:
        assert len(bar) < columns
        assert len(bar.split("|")[1]) >= 9
        shown = re.findall(r"(\w+)=(\S+?)[,\]]", bar)
        assert bar.count("=") == len(shown)
        assert all(value == "0.1235" for name, value in shown if name != "loss")
    assert any(bar.startswith("Validation:") for bar in screen.bars)
    assert "\x1b" not in screen.written
    assert not any("|" in line for line in screen.lines)  # the bars are gone


def test_no_bar_on_a_dumb_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with terminal(80, monkeypatch) as screen:
        runner(ConsoleLogger(interval=1e-6)).fit(BATCHES * 40)
    assert re.search(r"[^\n -~]", screen.written.replace("\r\n", "\n")) is None
    assert len(screen.lines) == 3


KILLED = """
import os, signal, torch
from fit_callbacks import ConsoleLogger, LRScheduler
from fit_core import Callback, Runner

class Kill(Callback):
    def on_batch_end(self, state):
        if state.epoch == 9:
            os.kill(os.getpid(), signal.SIGKILL)

model = torch.nn.Linear(1, 1)
batches = [(torch.ones(2, 1), torch.zeros(2, 1))] * 3
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
Runner(model, optimizer, torch.nn.MSELoss(), (), [ConsoleLogger(), Kill()]).fit(batches, epochs=20, val_loader=batches)
"""


def test_a_file_has_every_complete_epoch_after_a_kill(tmp_path):
    with (tmp_path / "log").open("w") as log:
        process = subprocess.run([sys.executable, "-c", KILLED], stdout=log, stderr=log, check=False)
    assert process.returncode == -signal.SIGKILL
    _, _, *rows = (tmp_path / "log").read_text().split("\n")
    assert rows.pop() == ""
    assert [row.split()[0] for row in rows] == [f"{number}/20" for number in range(1, 10)]


def test_values_are_read_only_when_the_bar_was_redrawn(monkeypatch):
    reads = []
    monkeypatch.setattr(fit_callbacks.terminal, "values", lambda state: reads.append(state.batch_idx) or {})
    monkeypatch.setattr(fit_callbacks.terminal, "room", lambda bar: 80)

    class Bar:
        def __init__(self, **options):
            self.count = 0

        def update(self):
            self.count += 1
            return self.count == 3

        def set_postfix_str(self, text, refresh):
            assert not refresh

        def close(self):
            pass

        write = staticmethod(lambda text, file: None)

    monkeypatch.setattr(fit_callbacks.terminal, "tqdm", Bar)
    runner(ConsoleLogger()).fit(BATCHES)
    assert reads == [2]


def test_the_bar_is_closed_after_an_exception(monkeypatch):
    class Fail(Callback):
        def on_batch_end(self, state):
            raise RuntimeError("stop")

    with terminal(80, monkeypatch) as screen, pytest.raises(RuntimeError):
        runner(ConsoleLogger(), Fail()).fit(BATCHES)
    assert screen.bars
    assert not any("|" in line for line in [*screen.lines, screen.written.split("\r")[-1]])


def test_evaluate_alone_has_a_bar_and_no_table(monkeypatch):
    with terminal(80, monkeypatch) as screen:
        run = runner(ConsoleLogger())
        run.evaluate(BATCHES, name="test")
        run.predict(BATCHES)
    assert {bar.split(":")[0] for bar in screen.bars} == {"test", "Prediction"}
    assert screen.lines == []


def test_the_bar_goes_on_after_an_evaluation_inside_its_loader(monkeypatch):
    class Evaluate(Callback):
        def on_batch_end(self, state):
            if state.is_train and state.batch_idx == 1:
                run.evaluate(BATCHES, name="test")

    with terminal(80, monkeypatch) as screen:
        run = runner(Evaluate(), ConsoleLogger(interval=1e-6))
        run.fit(BATCHES * 4)
    titles = [bar.removeprefix("\x1b[A").split(":")[0] for bar in screen.bars]
    assert titles.index("test") < len(titles) - 1 - titles[::-1].index("Epoch 1/1")


def test_importing_is_light():
    code = (
        "import sys, fit_callbacks; print(*(m for m in ('matplotlib', 'tensorboard', 'IPython') if m in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
