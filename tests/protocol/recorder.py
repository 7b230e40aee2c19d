"""A run whose first callback notes every hook."""

import torch
from fit_core import HOOKS, Callback, Runner
from torch import nn


def note(hook):
    def method(self, state):
        where = "" if hook in ("on_begin", "on_end") else f" {state.epoch}"
        if hook.startswith(("on_batch", "on_after", "on_before", "on_loader")):
            where += " train" if state.is_train else " val"
        if hook.startswith(("on_batch", "on_after", "on_before")):
            where += f" {state.batch_idx}"
        self.events.append(hook.removeprefix("on_") + where)

    return method


Recorder = type("Recorder", (Callback,), {hook: note(hook) for hook in HOOKS})


def batches(count):
    return [(torch.randn(2, 3), torch.randn(2, 1)) for _ in range(count)]


def runner(*others, **options):
    model = nn.Linear(3, 1)
    recorder = Recorder()
    recorder.events = []
    made = Runner(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss(), (), [recorder, *others], **options)
    return made, recorder.events


class StopAt(Callback):
    def __init__(self, hook, epoch, is_train=True):
        self.hook, self.epoch, self.is_train = hook, epoch, is_train

    def on_batch_end(self, state):
        state.should_stop |= (self.hook, self.epoch, self.is_train) == ("batch", state.epoch, state.is_train)

    def on_epoch_end(self, state):
        state.should_stop |= (self.hook, self.epoch) == ("epoch", state.epoch)


class Fails(Callback):
    def __init__(self, *hooks, error=ZeroDivisionError):
        self.error = error
        for hook in hooks:
            setattr(self, hook, self.fail)

    def fail(self, state):
        raise self.error("of a callback")
