"""The history is a list of dicts that notebooks show as a table."""

import pickle

import torch
from fit_core import Callback, History, Runner
from torch import nn


class StopInEpoch(Callback):
    def on_batch_end(self, state):
        state.should_stop = state.epoch == 1


def train(*callbacks, **options):
    model = nn.Linear(1, 1)
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), callbacks=callbacks)
    return runner, runner.fit([(torch.ones(2, 1), torch.zeros(2, 1))] * 3, 2, **options)


def test_fit_returns_a_history_that_is_a_list():
    for callbacks in ([], [StopInEpoch()]):
        runner, history = train(*callbacks)
        assert type(history) is type(runner.state.history) is History
        assert history == list(history)
        assert repr(history) == repr(list(history))
        assert pickle.loads(pickle.dumps(history)) == history
    assert "stopped_after_batch" in history[-1]


def test_a_saved_state_has_plain_lists_and_is_restored_as_a_history():
    runner, history = train()
    saved = runner.state.state_dict()
    assert type(saved["history"]) is list
    runner.state.load_state_dict(saved)
    assert type(runner.state.history) is History
    assert runner.state.history == history


def test_a_notebook_shows_a_table():
    html = History(
        [{"epoch": 1, "train/loss": 0.25}, {"epoch": 2, "train/loss": 1e-5, "val/<b>": 0.123456}]
    )._repr_html_()
    assert "<tr><th>epoch</th><th>train/loss</th><th>val/&lt;b&gt;</th></tr>" in html
    assert "<tr><td>1</td><td>0.25</td><td></td></tr><tr><td>2</td><td>1e-05</td><td>0.1235</td></tr>" in html


def test_text_that_a_callback_logs_is_shown():
    class Note(Callback):
        def on_epoch_end(self, state):
            state.logs["note"] = "<warm-up>"

    model = nn.Linear(1, 1)
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), callbacks=[Note()])
    history = runner.fit([(torch.ones(2, 1), torch.ones(2, 1))])
    assert "<td>&lt;warm-up&gt;</td>" in history._repr_html_()
    assert "note <warm-up>" in repr(runner.state)


def test_printing_a_runner_shows_autocast():
    model = nn.Linear(1, 1)
    runner = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), use_bf16=True)
    assert repr(runner).startswith("Runner(Linear, SGD, MSELoss) on cpu with autocast to bfloat16, metrics: none\n")
