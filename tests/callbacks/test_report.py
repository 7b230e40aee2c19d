"""Report: every value arrives once, under the id of its run, and the tracker never ends a run."""

import warnings

import pytest
from fit_callbacks import CheckpointSaver, Report
from fit_core import Callback
from scene import Snapshots, Watch, accuracy, batches, load, make
from torch.utils.data import BatchSampler, DataLoader


class Tracker:
    """A tracking service. `runs` is by id what has arrived: a list of (step, values), and the statuses."""

    def __init__(self):
        self.runs, self.params, self.current = {}, [], None

    def start(self, id):
        self.current = id or f"run-{len(self.runs)}"
        self.runs.setdefault(self.current, ([], []))
        return self.current

    def log(self, values, step):
        self.runs[self.current][0].append((step, values))

    def finish(self, status):
        self.runs[self.current][1].append(status)
        self.current = None

    def report(self, **options):
        return Report(self.log, params=self.params.append, start=self.start, finish=self.finish, **options)


def fit(*callbacks, saved=None, epochs=3, **options):
    runner = make(*callbacks, metrics=[accuracy], **options)
    if saved:
        runner.state.load_state_dict(load(saved))
    return runner.fit(batches(), epochs=epochs, val_loader=batches(seed=1))


def test_a_row_per_epoch_and_running_values_between():
    class Late(Callback):
        def on_epoch_end(self, state):
            state.logs["late"] = 2.5

    seen = []
    history = fit(Report(lambda values, step: seen.append((step, values)), every=2), Late(), epochs=2)
    assert [step for step, _ in seen] == [2, 4, 5, 6, 8, 10]
    assert seen[2][1] == history[0]
    running = {"train_step/loss", "train_step/accuracy", "train_step/lr"}
    assert seen[5][1].keys() == running | history[1].keys()  # the last step of the epoch, in one call
    assert {name: value for name, value in seen[5][1].items() if name not in running} == history[1]
    assert seen[5][1]["train_step/accuracy"] == pytest.approx(history[1]["train/accuracy"])
    assert seen[0][1].keys() == running
    assert history[0]["late"] == 2.5


@pytest.mark.parametrize("every", [None, 100])
def test_rows_alone(every):
    seen = []
    history = fit(Report(lambda values, step: seen.append(values), every=every))
    assert seen == history


class Kill(Callback):
    """Raises some batches after a number of checkpoints."""

    def __init__(self, snapshots, count, after):
        self.snapshots, self.count, self.after = snapshots, count, after

    def on_checkpoint(self, state):
        if self.after == 0:
            self.kill()

    def on_batch_begin(self, state):
        if self.after > 0:
            self.kill()

    def kill(self):
        if len(self.snapshots.saved) >= self.count + self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("accumulate_steps", "every"), [(1, 1), (2, 1), (1, 3)])
def test_each_step_once_however_a_run_is_killed(before, after, accumulate_steps, every):
    def run(tracker, kill=None, saved=None):
        snapshots = Snapshots()
        report = tracker.report(every=every)
        sent = Watch("on_checkpoint", lambda state: len(tracker.runs["run-0"][0]))
        callbacks = [report, snapshots, sent] if before else [snapshots, report, sent]
        options = {"saved": saved, "accumulate_steps": accumulate_steps}
        if kill is None:
            fit(*callbacks, **options)
        else:
            with pytest.raises(KeyboardInterrupt):
                fit(*callbacks, Kill(snapshots, kill, after), **options)
        return snapshots.saved, sent.seen

    def one_run(tracker):
        assert list(tracker.runs) == ["run-0"]
        assert len(tracker.params) == 1
        return tracker.runs["run-0"]

    gold = Tracker()
    count = len(run(gold)[0])
    assert count == 3 * 6
    points, statuses = one_run(gold)
    assert [step for step, _ in points] == sorted({step for step, _ in points})
    assert statuses == ["finished"]
    for kill in range(1, count - after):
        tracker = Tracker()
        saved, sent = run(tracker, kill)
        first = list(tracker.runs["run-0"][0])
        run(tracker, saved=saved[kill - 1])
        resumed, statuses = one_run(tracker)
        assert statuses == ["interrupted", "finished"]
        assert first == points[: len(first)]
        # What came between the checkpoint and the kill is repeated, with the same values.
        assert first[: sent[kill - 1]] + resumed[len(first) :] == points, kill
        assert after or resumed == points, kill


def test_a_second_fit_is_a_second_run():
    tracker = Tracker()
    runner = make(tracker.report(every=None))
    histories = [runner.fit(batches(), epochs=2), runner.fit(batches(), epochs=1)]
    assert list(tracker.runs) == ["run-0", "run-1"]
    for history, (points, statuses) in zip(histories, tracker.runs.values(), strict=True):
        assert [values for _, values in points] == history
        assert [step for step, _ in points] == [5, 10][: len(history)]
        assert statuses == ["finished"]
    assert len(tracker.params) == 2


@pytest.mark.parametrize(
    "options", [{"batch_size": 4}, {"batch_size": None, "sampler": BatchSampler(range(8), 4, False)}]
)
def test_hyperparameters(options):
    tracker = Tracker()
    loader = DataLoader(batches()[0][0], collate_fn=lambda _: batches()[0], **options)
    make(tracker.report()).fit(loader, epochs=2)
    assert tracker.params == [
        {
            "model": "Sequential",
            "optimizer": "SGD",
            "lr": 0.1,
            "batch_size": 4,
            "accumulate_steps": 1,
            "processes": 1,
            "epochs": 2,
        }
    ]


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("no memory"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_how_a_run_ended(error, status):
    class Raise(Callback):
        def on_batch_end(self, state):
            if state.global_step == 7:
                raise error

    tracker = Tracker()
    with pytest.raises(type(error)):
        fit(tracker.report(every=None), Raise())
    points, statuses = tracker.runs["run-0"]
    assert [step for step, _ in points] == [5]
    assert statuses == [status]


@pytest.mark.parametrize("is_first", [True, False])
def test_a_time_limit_and_a_checkpoint_saver(tmp_path, is_first):
    class Stop(Callback):
        def __init__(self, at):
            self.at = at

        def on_batch_end(self, state):
            state.should_stop = state.global_step == self.at and state.is_train is self.is_train
            if state.should_stop:
                self.at = None

    def run(tracker, folder, at, is_train):
        stop, saver = Stop(at), CheckpointSaver(folder, resume="auto")
        stop.is_train = is_train
        report = tracker.report(every=1)
        callbacks = [report, saver] if is_first else [saver, report]
        fit(stop, *callbacks)

    gold = Tracker()
    run(gold, tmp_path / "gold", None, True)
    for at, is_train in [(3, True), (5, True), (5, False), (10, False), (12, True)]:
        tracker = Tracker()
        folder = tmp_path / f"{at}{is_train}"
        run(tracker, folder, at, is_train)
        for _ in range(2):  # when the run is complete, nothing is opened again
            run(tracker, folder, None, True)
            assert list(tracker.runs) == ["run-0"]
            points, statuses = tracker.runs["run-0"]
            assert points == gold.runs["run-0"][0]
            assert statuses == ["interrupted", "finished"]


def refuse(*args, **kwargs):
    raise ConnectionError("no route to host")


@pytest.mark.parametrize("broken", [("log",), ("params",), ("start",), ("finish",), ("log", "params", "finish")])
def test_a_tracker_that_raises_is_warned_of_once(broken):
    tracker = Tracker()
    report = tracker.report(every=1)
    for name in broken:
        setattr(report, name, refuse)
    snapshots = Snapshots()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        history = fit(report, snapshots)
    (warning,) = [str(caught.message) for caught in seen if "Report" in str(caught.message)]
    first = next(name for name in ("start", "params", "log", "finish") if name in broken)
    assert warning.startswith(f"Report: {first} raised ConnectionError('no route to host'). Training continues")
    assert len(history) == 3
    if broken == ("finish",):
        assert [values["epoch"] for _, values in tracker.runs["run-0"][0] if "epoch" in values] == [1, 2, 3]
    if broken == ("start",):  # into which run would it go?
        assert tracker.runs == {}
        assert tracker.params == []


@pytest.mark.parametrize("times", [1, 2])
def test_a_start_that_fails_is_tried_again_in_the_next_epoch(times):
    tracker = Tracker()
    report = tracker.report(every=None)
    calls = []

    def start(id):
        calls.append(id)
        return tracker.start(id) if len(calls) > times else refuse()

    report.start = start
    with pytest.warns(UserWarning, match="Report: start raised ConnectionError"):
        history = fit(report)
    points = [(5, history[0]), (10, history[1]), (15, history[2])]
    assert tracker.runs == {"run-0": (points[times - 1 :], ["finished"])}


def test_other_ranks_are_silent(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    tracker = Tracker()
    fit(tracker.report(every=1), Snapshots())
    assert (tracker.runs, tracker.params) == ({}, [])


def test_evaluate_alone_reports_nothing():
    tracker = Tracker()
    runner = make(tracker.report(every=1))
    runner.evaluate(batches())
    runner.fit(batches())
    points = list(tracker.runs["run-0"][0])
    runner.evaluate(batches())
    assert tracker.runs["run-0"][0] == points


def test_a_loader_without_a_len():
    class Endless:
        def __iter__(self):
            yield from batches()

    seen = []
    history = make(Report(lambda values, step: seen.append((step, values)), every=1)).fit(Endless(), epochs=2)
    rows = [(step, values) for step, values in seen if "epoch" in values]
    assert rows == [(5, history[0]), (10, history[1])]
    assert [step for step, values in seen if "train_step/loss" in values] == list(range(1, 11))


def test_a_checkpoint_from_before_report_was_added():
    snapshots = Snapshots()
    fit(snapshots)
    tracker = Tracker()
    history = fit(tracker.report(every=None), saved=snapshots.saved[8])  # in the second epoch
    assert tracker.runs == {"run-0": ([(10, history[1]), (15, history[2])], ["finished"])}


def test_every_is_a_number_of_steps():
    with pytest.raises(ValueError, match="expected every to be a number of optimizer steps"):
        Report(print, every=0)
