"""Train with hand-written loops and with the Runner. Each calls `mark()` after an epoch."""

import copy
import dataclasses
import time

import torch
from fit_callbacks import CheckpointSaver, ConsoleLogger, ModelEma, TensorBoard, Timer
from fit_core import Callback, Runner
from fit_metrics import Accuracy
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm


class Mark(Callback):
    """Calls `mark` after each epoch."""

    def __init__(self, mark):
        self.mark = mark

    def on_epoch_end(self, state):
        self.mark()


def plain(work, epochs, mark, folder):
    """The loop of a tutorial, but for the running loss, which stays on the device."""
    model, optimizer, criterion = work.model, work.make_optimizer(), work.criterion
    for _ in range(epochs):
        total = torch.zeros(())
        for input, target in work.loader:
            optimizer.zero_grad()
            loss = criterion(model(input), target)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(input)
        mark()


def lean(work, epochs, mark, folder):
    """The Runner of fit-core alone."""
    runner = Runner(work.model, work.make_optimizer(), work.criterion, callbacks=[Mark(mark)])
    runner.fit(work.loader, epochs=epochs)


def compiled_model(work, epochs, mark, folder):
    """The plain loop with `torch.compile(model)`."""
    plain(dataclasses.replace(work, model=torch.compile(work.model)), epochs, mark, folder)


def compiled_step(work, epochs, mark, folder):
    """The Runner with each training step compiled as a whole."""
    from fit_callbacks import CompiledStep

    callbacks = [CompiledStep(), Mark(mark)]
    Runner(work.model, work.make_optimizer(), work.criterion, callbacks=callbacks).fit(work.loader, epochs=epochs)


def epochs_by_hand(work, epochs, mark, folder):
    """The plain loop with a history: each epoch's mean loss is read, and the model validated where the work asks."""
    model, optimizer, criterion = work.model, work.make_optimizer(), work.criterion
    history = []
    for epoch in range(epochs):
        row = {"epoch": epoch + 1}
        for name in ("train", "val")[: 1 + work.validates]:
            is_train = name == "train"
            model.train(is_train)
            total, samples = torch.zeros(()), 0
            with torch.set_grad_enabled(is_train):
                for input, target in work.loader:
                    loss = criterion(model(input), target)
                    if is_train:
                        optimizer.zero_grad()
                        loss.backward()
                        optimizer.step()
                    total += loss.detach() * len(input)
                    samples += len(input)
            row[f"{name}/loss"] = float(total / samples)
        history.append(row)
        mark()


def epochs_of_runner(work, epochs, mark, folder):
    """The same with the Runner of fit-core alone."""
    runner = Runner(work.model, work.make_optimizer(), work.criterion, callbacks=[Mark(mark)])
    runner.fit(work.loader, epochs, val_loader=work.loader if work.validates else None)


def ten(work, epochs, mark, folder):
    """The same with ten callbacks, each with a hook at every batch."""

    class Hook(Callback):
        def on_batch_end(self, state):
            pass

    callbacks = [*(Hook() for _ in range(10)), Mark(mark)]
    Runner(work.model, work.make_optimizer(), work.criterion, callbacks=callbacks).fit(work.loader, epochs=epochs)


def careful(work, epochs, mark, folder):
    """Bar, two accuracies, TensorBoard, checkpoints, by somebody who knows what costs: values are read when shown."""
    model, optimizer, criterion = work.model, work.make_optimizer(), work.criterion
    writer = SummaryWriter(folder)
    step = 0
    for epoch in range(epochs):
        total, right, right5 = torch.zeros((), dtype=torch.float64), torch.zeros(()), torch.zeros(())
        count = 0
        bar = tqdm(total=len(work.loader), desc=f"Epoch {epoch + 1}", mininterval=0.25, leave=False)
        for input, target in work.loader:
            optimizer.zero_grad()
            output = model(input)
            loss = criterion(output, target)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                total += loss.detach() * len(input)
                hits = output.topk(5, 1).indices == target[:, None]
                right += hits[:, 0].sum()
                right5 += hits.sum()
            count += len(input)
            step += 1
            if bar.update():
                values = {"loss": total / count, "Acc@1": right / count, "Acc@5": right5 / count}
                bar.set_postfix({name: f"{float(value):.4f}" for name, value in values.items()}, refresh=False)
            if step % 50 == 0:
                writer.add_scalar("train_step/loss", float(total) / count, step)
                writer.add_scalar("train_step/Acc@1", float(right) / count, step)
                writer.add_scalar("train_step/Acc@5", float(right5) / count, step)
                writer.add_scalar("lr", optimizer.param_groups[0]["lr"], step)
        bar.close()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, f"{folder}/last.pt")
        mark()
    writer.close()


def full(work, epochs, mark, folder):
    """The same by callbacks; the checkpoint is fit's, which survives a kill."""
    callbacks = [ConsoleLogger(), TensorBoard(folder), CheckpointSaver(folder), Mark(mark)]
    metrics = [Accuracy(1, 5)]
    Runner(work.model, work.make_optimizer(), work.criterion, metrics, callbacks).fit(work.loader, epochs=epochs)


def by_hand(feature):
    """The plain loop with a feature: `feature(work, folder)` gives what to call after, and before, each step."""

    def run(work, epochs, mark, folder):
        model, optimizer, criterion = work.model, work.make_optimizer(), work.criterion
        each, before = feature(work, folder)
        for _ in range(epochs):
            total = torch.zeros(())
            for input, target in work.loader:
                before()
                optimizer.zero_grad()
                output = model(input)
                loss = criterion(output, target)
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(input)
                each(output, target, loss)
            mark()

    run.__doc__ = feature.__doc__
    return run


def with_callbacks(*make):
    def run(work, epochs, mark, folder):
        callbacks = [*(callback(folder) for callback in make), Mark(mark)]
        Runner(work.model, work.make_optimizer(), work.criterion, callbacks=callbacks).fit(work.loader, epochs=epochs)

    return run


def nothing(*_):
    pass


def accuracies_by_hand(work, folder):
    right, right5 = torch.zeros(()), torch.zeros(())

    def each(output, target, loss):
        with torch.no_grad():
            hits = output.topk(5, 1).indices == target[:, None]
            right.add_(hits[:, 0].sum())
            right5.add_(hits.sum())

    return each, nothing


def accuracies(work, epochs, mark, folder):
    Runner(work.model, work.make_optimizer(), work.criterion, [Accuracy(1, 5)], [Mark(mark)]).fit(
        work.loader, epochs=epochs
    )


def bar_by_hand(work, folder):
    bar = tqdm(mininterval=0.25, disable=None)
    total, count = torch.zeros((), dtype=torch.float64), 0

    def each(output, target, loss):
        nonlocal count
        total.add_(loss.detach())
        count += 1
        if bar.update():
            bar.set_postfix({"loss": f"{float(total) / count:.4f}"}, refresh=False)

    return each, nothing


def tensorboard_by_hand(work, folder):
    writer, step, lr = SummaryWriter(folder), 0, work.lr

    def each(output, target, loss):
        nonlocal step
        step += 1
        if step % 50 == 0:
            writer.add_scalar("loss", loss.item(), step)
            writer.add_scalar("lr", lr, step)

    return each, nothing


def timer_by_hand(work, folder):
    waited, since = 0.0, time.perf_counter()

    def before():
        nonlocal waited
        waited += time.perf_counter() - since

    def each(output, target, loss):
        nonlocal since
        since = time.perf_counter()

    return each, before


def ema_by_hand(work, folder):
    average = torch.optim.swa_utils.AveragedModel(
        copy.deepcopy(work.model), multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99), use_buffers=False
    )
    return (lambda output, target, loss: average.update_parameters(work.model)), nothing


def nothing_by_hand(work, folder):
    return nothing, nothing


def checkpoint_by_hand(work, folder):
    optimizer, step = work.make_optimizer(), 0  # another one with the same state: plain SGD has none

    def each(output, target, loss):
        nonlocal step
        step += 1
        if step % len(work.loader) == 0:
            torch.save({"model": work.model.state_dict(), "optimizer": optimizer.state_dict()}, f"{folder}/last.pt")

    return each, nothing


CONTESTANTS = {
    "plain": plain,
    "lean": lean,
    "CompiledStep": compiled_step,
    "torch.compile": compiled_model,
    "epochs-by-hand": epochs_by_hand,
    "epochs": epochs_of_runner,
    "ten": ten,
    "careful": careful,
    "full": full,
    "accuracies-by-hand": by_hand(accuracies_by_hand),
    "accuracies": accuracies,
    "bar-by-hand": by_hand(bar_by_hand),
    "bar": with_callbacks(lambda folder: ConsoleLogger()),
    "tensorboard-by-hand": by_hand(tensorboard_by_hand),
    "tensorboard": with_callbacks(TensorBoard),
    "timer-by-hand": by_hand(timer_by_hand),
    "timer": with_callbacks(lambda folder: Timer()),
    "ema-by-hand": by_hand(ema_by_hand),
    "ema": with_callbacks(lambda folder: ModelEma(0.99)),
    "idle-by-hand": by_hand(nothing_by_hand),
    "saver-by-hand": by_hand(checkpoint_by_hand),
    "saver": with_callbacks(CheckpointSaver),
}
