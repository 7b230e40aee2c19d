"""Save a run, and resume it."""

from __future__ import annotations

import os
import signal
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from fit_core import Callback, RunnerState, has_process_group, host_group

from ..arguments import check_whole
from ..ema import ModelEma
from ..every import check_every, is_due
from ..hints import hints
from ..monitor import Monitor
from ..paths import local_folder, local_path
from ..ranks import print_line
from .commit import commit, commit_shards
from .content import to_cpu
from .files import CheckpointError, fingerprint, read_same
from .find import find
from .finite import not_finite
from .folder import checkpoints, is_same, values_after
from .lock import FolderLock
from .peers import Peers
from .ranking import Ranking
from .sharded import fill, place_of, take_shards
from .signals import Signals
from .writer import Writer

__all__ = ["CheckpointSaver"]

_OF_FILES = (".pt", ".pth", ".ckpt", ".h5", ".keras", ".bin", ".safetensors")


@hints(
    filepath="Pass the folder: CheckpointSaver(save_dir)",
    dirpath="Pass the folder: CheckpointSaver(save_dir)",
    save_best_only="best.pt is always kept, and so is last.pt, which a resume needs",
    save_weights_only='A checkpoint is a whole run, and torch.load(path, weights_only=True)["model"] is its weights',
    save_top_k="Use keep=k",
    save_last="last.pt is always kept",
    filename="Files have fixed names: last.pt, best.pt and, with keep=k, epoch-0007.pt",
    every_n_epochs="It saves after each epoch, and with every_steps=n also every n optimizer steps",
    patience="To stop when nothing improves, add EarlyStopping('val/loss', patience=3) to the callbacks",
    save_freq="Use every_steps=n, in optimizer steps",
    every_n_train_steps="Use every_steps=n, in optimizer steps",
    verbose="It prints a line when it resumes or stops a run",
)
class CheckpointSaver(Callback):
    """Save the run after each epoch, and resume it after any interruption, bit for bit.

    A checkpoint is one file with everything about a run: model, optimizer, scaler, callbacks, place in the data, random
    states of all processes. `torch.load("best.pt", weights_only=True)["model"]` is the bare model's state dict. In
    `save_dir`:

    * `last.pt` is the latest, and `before-last.pt` the one before, in case the latest is damaged.
    * `best.pt` is that of the best epoch by `monitor`. With `keep=k` the k best are kept too, as
      `epoch-0007.pt`.

    A file is written under another name, forced to the disk, read back, and then renamed. Only then the old file is
    removed. A kill at any moment leaves a complete checkpoint. Weights that are nan or infinite are not saved.

    Of a model that `fully_shard` has split, each process writes its shards to a folder `shards-000001` in
    `save_dir`, and the file refers to it. The run may be resumed on another number of processes, or on one.
    `fit_callbacks.checkpoint.read("best.pt")` puts the tensors together.

    SIGTERM, SIGINT (Ctrl-C), SIGUSR1 and SIGHUP save the run after the batch, in validation too, and end the process
    with status 143, 130, 138 or 129. Another Ctrl-C, more than a second later, ends it at once. Several processes stop
    at the same step. Loader workers that the run starts ignore these signals.

    Args:
        save_dir: the folder. When a new run starts, checkpoints of an earlier run in it are moved to `previous-1`.
        monitor: the key of the logs that decides which epoch is best. `loss` is `val/loss`, or `train/loss`
            without validation.
        mode: `min` if lower is better, `max` if higher is. `auto` takes `min` for a loss, and asks a metric's
            `higher_is_better`.
        keep: how many of the best to keep, 1 or more.
        every_steps: save `last.pt` also every this many optimizer steps.
        resume: False starts from scratch. True resumes the newest complete checkpoint in `save_dir`. `"auto"` does
            the same, and starts from scratch if there is none. A path resumes that file, or the newest complete one in
            that folder.
        save_on_signal: whether signals save and stop, in a run on the main thread.
        background: copy the state at once, and write it in a thread while training continues. The next save waits for
            it, and raises its errors.
        on_error: `"raise"` ends the run if a checkpoint cannot be written, because the disk is full or the folder is
            gone. `"warn"` trains on, and tries again at the next save. A state that cannot be loaded again always
            raises an error.

    Raises:
        ValueError: an argument is out of range, `save_dir` is a file, or the run does not have the result `monitor`.
        FileNotFoundError: there is nothing to resume from.
        PermissionError: `save_dir` cannot be written to. Raised before the first step.
        RuntimeError: another run, or another CheckpointSaver, is writing to `save_dir`.
        CheckpointError: all checkpoints are damaged, or a checkpoint could not be written.
        TypeError: the state contains something that cannot be loaded again. Raised at the first save. The message names
            its place.

    Examples:
        >>> CheckpointSaver("runs/a", "val/Acc@1", resume="auto")

        In a shell, `python -m fit_callbacks.checkpoint runs/a` lists the checkpoints of a folder.
    """

    stops_together = True

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        monitor: str = "loss",
        mode: str = "auto",
        *,
        keep: int = 1,
        every_steps: int | None = None,
        resume: bool | str | os.PathLike[str] = False,
        save_on_signal: bool = True,
        background: bool = False,
        on_error: str = "raise",
    ) -> None:
        check_every("every_steps", every_steps)
        check_whole("keep", keep, 1)
        self.save_dir = local_folder("save_dir", save_dir)
        if self.save_dir.suffix in _OF_FILES and not self.save_dir.exists():
            raise ValueError(
                f"expected save_dir to be a folder, got {str(save_dir)!r}. Files have fixed names, as best.pt. Write "
                f"CheckpointSaver({str(self.save_dir.parent)!r})"
            )
        self.monitor = Monitor(monitor, mode)
        self.keep = keep
        self.every_steps = every_steps
        if not isinstance(resume, (bool, str, os.PathLike)):
            raise TypeError(f'expected resume to be True, False, "auto" or a path, got {resume!r}')
        self.resume = resume if isinstance(resume, bool) or resume == "auto" else local_path("resume", resume)
        self.save_on_signal = save_on_signal
        self.background = background
        if on_error not in ("raise", "warn"):
            raise ValueError(f"expected on_error to be 'raise' or 'warn', got {on_error!r}")
        self.on_error = on_error
        self._ranking = Ranking(keep, self.monitor)
        self._epochs = 0
        self._saved: tuple[int, int] | None = None
        self._newer: list[tuple[float, int]] = []  # later ones in the folder than the resumed checkpoint
        self._has_begun = False
        self._never_finite: set[str] = set()  # such as masks of -inf
        self._stopped_by = 0
        self._signals = Signals()
        self._lock = FolderLock()
        self._writer = Writer()
        self._peers = self._writers = Peers()
        self._state: RunnerState | None = None

    def on_begin(self, state: RunnerState) -> None:
        """Resume the run in the folder, if there is one."""
        self.monitor.begin(state)
        self._ranking.begin()
        self._epochs, self._saved, self._stopped_by = 0, None, 0
        self._never_finite = not_finite(state, parameters=False)
        like = place_of(state)
        self._peers = Peers(host_group() if has_process_group() else None)
        self._writers = Peers(host_group()) if like and self.background and has_process_group() else self._peers
        self._state = state
        self._has_begun = True
        found = self._found(state)
        if found is not None:
            path, content = found
            filled = self._peers.together(lambda: fill(content, path, like, state.rank))
            try:
                state.checkpoint.load_state_dict(filled)  # without the copies that state.load_state_dict makes
            except ValueError as error:
                error.args = (f"{error}\nThe checkpoint is {path}. For a new run, pass another folder or resume=False",)
                raise
            self._saved = _point(state) if is_same(path.parent, self.save_dir) else None
            self._print_place(state, path, content)
        if self.save_on_signal:
            self._signals.listen()

    def on_epoch_begin(self, state: RunnerState) -> None:
        """Count the complete epochs."""
        self._epochs = len(state.history)

    def on_loader_begin(self, state: RunnerState) -> None:
        """Warn about an evaluation before `fit`, which does not resume the run."""
        if not self._has_begun and self.resume and state.rank == 0:
            self._has_begun = True
            source = self.save_dir if isinstance(self.resume, bool) or self.resume == "auto" else Path(self.resume)
            paths = checkpoints(source) if source.is_dir() else [source]
            if any(path.exists() for path in paths):
                warnings.warn(
                    "CheckpointSaver resumes a run in fit, and not in evaluate or predict, which use the current "
                    "weights of the model. To use others, call model.load_state_dict("
                    f'torch.load("{self.save_dir / "best.pt"}", weights_only=True)["model"])',
                    stacklevel=2,
                )

    def on_checkpoint(self, state: RunnerState) -> None:
        """Save the run if it is due, and stop it after a signal."""
        self._stopped_by = self._peers.highest_before(self._signals.received)
        if len(state.history) != self._epochs:
            self._epochs = len(state.history)
            self._save(state, self.monitor.value(state))
        elif is_due(state, self.every_steps) or self._stopped_by or state.should_stop:
            self._save(state)
        if self._stopped_by:
            state.should_stop, state.status = True, "interrupted"

    def on_batch_end(self, state: RunnerState) -> None:
        """Stop after the batch in validation too. Evaluations by callbacks are not stopped."""
        if not state.is_train and self._signals.received and state is self._state:
            state.should_stop = True

    def on_end(self, state: RunnerState) -> None:
        """Save a run that was stopped in validation, wait for the writer, and end the process after a signal."""
        self._state = None
        try:
            if state.error is None:
                asked = self._peers.highest(self._signals.received)
                self._stopped_by = self._stopped_by or asked
                if self._saved != _point(state):
                    self._save(state)
                if self.background:
                    self._attempt(state, self._writer.wait)
                if self._writers is not self._peers:
                    self._writers.close()
                self._peers.close()
            else:  # The process ends. A connection that it closes would look like the cause elsewhere.
                self._writer.warn()
        except BaseException:
            self._signals.restore()
            raise
        finally:
            self._lock.release()
        stopped_by = self._stopped_by if state.error is None else 0
        if stopped_by in (0, signal.SIGINT):
            self._signals.restore(keep=stopped_by)
        if stopped_by:  # The process ends. A signal that a scheduler repeats should not change its status.
            self._stop(state, signal.Signals(stopped_by))
        if state.error is None and self._signals.received:  # It came too late for the processes to agree on.
            signal.raise_signal(self._signals.received)

    def _stop(self, state: RunnerState, number: signal.Signals) -> NoReturn:
        name = "Ctrl-C" if number == signal.SIGINT else number.name
        again = "Run the same command again" if self.resume else "Pass resume=True, and run the same command again"
        epoch, last = state.epoch + 1, str(self.save_dir / "last.pt")
        if self._saved is None:  # The last save has failed, with a warning.
            last += " of an earlier step"
        print_line(
            state,
            f"CheckpointSaver: stopped by {name} in epoch {epoch} of {state.num_epochs}. {again} to resume "
            f"(checkpoint: {last})"
            if epoch <= state.num_epochs
            else f"CheckpointSaver: stopped by {name} after the last epoch. The run is complete (checkpoint: {last})",
        )
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def state_dict(self) -> dict[str, Any]:
        """Return the kept epochs and their values."""
        return {"monitor": self.monitor.state_dict(), "kept": self._ranking.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the kept epochs and their values."""
        if self.monitor.load_state_dict(state_dict["monitor"]):
            self._ranking.load_state_dict(state_dict["kept"], self._newer)

    def _save(self, state: RunnerState, value: float | None = None) -> None:
        """Save `last.pt`, and `best.pt` after an epoch with a value that is better."""
        self._saved = _point(state)
        if self.background:
            self._attempt(state, self._writer.wait)
        if not self._is_finite(state):
            print_line(
                state,
                f"CheckpointSaver: step {state.global_step} is not saved, because its weights are nan or infinite. Add "
                "StopOnNonFinite() to the callbacks to stop at the batch that causes it",
            )
            return
        names, dropped = self._ranking.add(state.epoch, value)
        content = state.state_dict()
        content["monitor"] = {"name": self.monitor.key, "value": value, "weights": self._weights(state)}
        content, shards = take_shards(content, state.rank)
        content["ranks"] = self._peers.gather(to_cpu(content["ranks"][0]))
        if state.rank == 0:
            content = to_cpu(content, copy=self.background)
        if self.background:
            shards = {name: shard.to("cpu", copy=True) for name, shard in shards.items()}

        def write() -> None:
            if shards:
                commit_shards(self.save_dir, content, shards, names, dropped, self._writers, state.rank)
            elif state.rank == 0:
                commit(self.save_dir, content, names, dropped)

        self._attempt(state, lambda: self._writer.run(write, self.background))

    def _attempt(self, state: RunnerState, write: Callable[[], None]) -> None:
        """Write. Raise an error of one rank on every rank, or warn about it."""
        try:
            self._peers.together(write)
        except CheckpointError as error:
            self._saved = None
            self._ranking.take_back()
            if self.on_error == "raise":
                raise
            if state.rank == 0:
                warnings.warn(f"{error}. The run continues without it", stacklevel=2)

    def _weights(self, state: RunnerState) -> str:
        """Return where in the checkpoint the weights are that the monitored value belongs to."""
        averages = [type(callback).__name__ for callback in state.callbacks if isinstance(callback, ModelEma)]
        return f"callbacks.{averages[0]}.model" if averages and not self.monitor.key.startswith("train/") else "model"

    def _found(self, state: RunnerState) -> tuple[Path, dict[str, Any]] | None:
        """Return the checkpoint to resume from. Each process reads it, unless some see another file than rank 0."""
        contents: list[dict[str, Any] | None] = []

        def open_folder() -> tuple[Path, str, list[tuple[float, int]]] | None:
            self.save_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.save_dir):  # so that a folder that cannot be written is an error now
                pass
            self._lock.acquire(self.save_dir)
            found = find(self.save_dir, self.resume, state)
            if found is None:
                return None
            path, content = found
            contents.append(content)
            is_own = is_same(path.parent, self.save_dir)
            newer = values_after(content["epoch"], self.monitor.key, self.save_dir) if is_own else []
            return path, fingerprint(path), newer

        opened = self._peers.on_rank_zero(open_folder)
        if opened is None:
            self._newer = []
            return None
        path, mark, self._newer = opened
        content = contents[0] if contents else read_same(path, mark)
        if not self._peers.all(content is not None):
            content = self._peers.on_rank_zero(lambda: content)
        assert content is not None
        return path, content

    def _print_place(self, state: RunnerState, path: Path, content: dict[str, Any]) -> None:
        if state.epoch >= state.num_epochs:
            print_line(
                state,
                f"CheckpointSaver: nothing to train, because the run in {path} has {state.epoch} epochs and fit asks "
                f"for {state.num_epochs}. Pass more epochs to fit, or resume=False to start from scratch",
            )
        else:
            batches = content["ranks"][0]["stream"]["batches_done"]
            place = f"epoch {state.epoch + 1} of {state.num_epochs}" + (f", after batch {batches}" if batches else "")
            print_line(state, f"CheckpointSaver: resumed from {path}, in {place}")

    def _is_finite(self, state: RunnerState) -> bool:
        """Return whether all weights are finite on every rank, and all buffers that were finite at the start."""
        return self._peers.all(not_finite(state) <= self._never_finite)  # Buffers may differ between processes.


def _point(state: RunnerState) -> tuple[int, int]:
    return state.epoch, state.samples_seen
