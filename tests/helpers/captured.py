"""Run the CUDA way of CompiledStep on the CPU, with a stand-in for the part of `torch.cuda` that it calls.

A capture notes each operation of a step, and then puts back everything that it has changed, since a real one computes
nothing. A replay runs the operations again, on the same tensors. Here the CPU is the device: a number that is read
from any tensor is read from the device.
"""

import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from fit_callbacks.compiled import cuda
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
INDEXED = (aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_)
READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def install(monkeypatch):
    """Let CompiledStep capture steps on the CPU. Return the stand-in."""
    stand_in = StandIn()
    monkeypatch.setattr(cuda, "captures", lambda device: device.type == "cpu")
    monkeypatch.setattr(cuda, "torch", SimpleNamespace(cuda=stand_in))
    monkeypatch.setattr("fit_metrics.accuracy._is_captured", lambda output: stand_in.capturing is not None)
    return stand_in


class StandIn:
    """The part of `torch.cuda` that `fit_callbacks.compiled.cuda` calls.

    Attributes:
        capturing: the capture that is under way.
        captures: how many there were.
        replays: how often a graph was replayed.
    """

    def __init__(self):
        self.capturing, self.captures, self.replays = None, 0, 0
        self._streams = [Stream(self)]
        self._waits = None

    def Stream(self, device):
        return Stream(self)

    def CUDAGraph(self):
        return Graph(self)

    def graph_pool_handle(self):
        return self

    def synchronize(self):
        pass

    def current_stream(self):
        return self._streams[-1]

    @contextmanager
    def stream(self, stream):
        before = list(self._streams)
        self._streams.append(stream)
        try:
            yield
        finally:
            self._streams = before

    @contextmanager
    def graph(self, graph, *, pool, stream, capture_error_mode):
        """Capture what runs meanwhile. If that is not allowed, the end of the capture raises too, as on CUDA.

        Then the stream of the capture stays the current one, which torch does not restore after such an error.
        """
        assert pool is self
        assert self.capturing is None
        random = torch.get_rng_state()
        self.captures += 1
        self.capturing = capture = Capture(self, graph.operations)
        try:
            self._streams.append(stream)
            with capture:
                yield
        finally:
            self.capturing = None
            capture.undo()
            torch.set_rng_state(random)
            if capture.is_invalid:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self._streams.pop()

    def get_sync_debug_mode(self):
        return 0

    def set_sync_debug_mode(self, mode):
        if mode == "warn":
            self._waits = Waits()
            self._waits.__enter__()
        else:
            self._waits.__exit__(None, None, None)


class Stream:
    """A stream. Operations captured on one that waits for an event are replayed as early as CUDA may run them."""

    def __init__(self, stand_in):
        self._stand_in = stand_in
        self.place = None

    def record_event(self):
        return len(self._stand_in.capturing.operations)

    def wait_event(self, event):
        self.place = event

    def wait_stream(self, stream):
        stream.place = None


class Graph:
    """The operations of a step."""

    def __init__(self, stand_in):
        self._stand_in = stand_in
        self.operations = []

    def replay(self):
        self._stand_in.replays += 1
        with torch.no_grad():
            for func, args, kwargs, results in self.operations:
                new = _tensors(func(*args, **kwargs))
                for number, result in results:
                    result.copy_(new[number])


class Capture(TorchDispatchMode):
    """Note operations, and keep the numbers of each tensor that one of them is given.

    Tensors are noted as `.data`, so that a replay does not count as a change of them, as on CUDA.
    """

    def __init__(self, stand_in, operations):
        super().__init__()
        self.operations, self.is_invalid = operations, False
        self._stand_in = stand_in
        self._old, self._new = {}, {}  # storages

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _waits(func, args):
            self.is_invalid = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        given = {}
        for tensor in _tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            given[storage._cdata] = storage
            if storage._cdata not in self._old and storage._cdata not in self._new:
                self._old[storage._cdata] = storage, storage.clone()
        noted = tree_map_only(Tensor, lambda tensor: tensor.data, (args, kwargs))
        result = func(*args, **kwargs)
        results = []
        for number, tensor in enumerate(_tensors(result)):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:  # not a view
                self._new[storage._cdata] = storage
                results.append((number, tensor.data))
        stream = self._stand_in.current_stream()
        place = len(self.operations) if stream.place is None else stream.place
        self.operations.insert(place, (func, *noted, results))
        if stream.place is not None:
            stream.place += 1
        return result

    def undo(self):
        """Restore what was there before, and fill what is new with nan, so that it is not read before a replay."""
        for storage, numbers in self._old.values():
            storage.copy_(numbers)
        for storage in self._new.values():
            storage.fill_(255)
        self._old, self._new = {}, {}


class Waits(TorchDispatchMode):
    """Warn where a number is read. The counters that torch.optim reads are on the host, if CUDA is the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if _waits(func, args):
            frame = sys._getframe(1)
            while frame.f_code.co_filename.startswith(TORCH) and not frame.f_code.co_filename.startswith(OPTIM):
                frame = frame.f_back
            if not frame.f_code.co_filename.startswith(OPTIM):
                where = frame.f_code.co_filename, frame.f_lineno
                warnings.warn_explicit("called a synchronizing CUDA operation", UserWarning, *where)
        return func(*args, **(kwargs or {}))


TORCH = str(Path(torch.__file__).parent)
OPTIM = str(Path(torch.__file__).parent / "optim")


def _waits(func, args):
    """Return whether the host has to wait for the numbers in a tensor."""
    if func.overloadpacket in INDEXED:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return not READS.isdisjoint(func.tags)


def _tensors(value):
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
