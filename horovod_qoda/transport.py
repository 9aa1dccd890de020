"""How bytes move between ranks: through Horovod's collectives, or between threads for tests.

Every transport hands out handles that are polled, never waited for in a busy loop, and counts the
bytes of every tensor it is given, padding included, in one place.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from horovod_qoda.waiting import EQUAL_BATCHES, Waiting

POLL_S = 0.0005
"""Longest sleep between two polls; Horovod's own cycle is 1 ms, so shorter buys little."""

LOST_S = 1.0
"""How often a handle that is not done is checked for having come too late. Horovod 0.28.1 tests for
its shutdown and then queues the tensor; one queued in between is never reported."""


Data = Any
"""A NumPy array, or a torch tensor."""


class Handle(ABC):
    """A collective under way."""

    rank = 0
    name = ""
    collective = True
    """Whether ranks exchange something meanwhile."""

    @abstractmethod
    def done(self) -> bool:
        """True once :meth:`result` returns without waiting."""

    @abstractmethod
    def result(self) -> Any:
        """What the collective returns; raises what it raised."""

    def wait(self) -> Any:
        """Sleeps until done, then returns the result."""
        pause = POLL_S / 16
        with Waiting(self.rank, f"the collective {self.name!r}") as waiting:
            while not self.done():
                time.sleep(pause)
                pause = min(pause * 2, POLL_S)
                waiting.check()
        return self.result()


class Transport(ABC):
    """Collectives over one process set.

    All-gathers and all-to-alls take arrays, or torch tensors on a device, the same on all ranks,
    and return what they were given; splits are arrays. A device's work is ordered by the calling
    thread's current stream before a collective, and done when it is.

    Attributes:
        rank, size: this process and the number of processes.
        sent_bytes: bytes of all tensors handed over since the start, padding included.
        device_way: by what tensors on devices are moved, for the log.
        link_bytes: what of them this rank has sent to others since the start, were all-gathers and
            all-reduces rings: a tensor goes round but for one hop, and in a sum twice, in parts.
    """

    rank: int
    size: int
    device_way: str = "between threads"
    sent_bytes: int = 0
    link_bytes: float = 0.0

    def why_not(self, device: str) -> str:
        """Why tensors on a device cannot be handed over; empty where they can."""
        return ""

    def allgather(self, name: str, data: Data) -> Handle:
        """Concatenates one-dimensional ``data`` of all ranks in rank order; lengths may differ."""
        self.sent_bytes += data.nbytes
        self.link_bytes += (self.size - 1) * data.nbytes
        return self._allgather(name, data)

    def alltoall(self, name: str, data: Data, splits: np.ndarray) -> Handle:
        """Sends ``splits[r]`` elements of ``data`` to each rank r.

        The result is ``(received, received_splits)``, in rank order.
        """
        self.sent_bytes += data.nbytes
        self.link_bytes += data.nbytes - int(splits[self.rank]) * data.itemsize
        return self._alltoall(name, data, splits)

    def allreduce(self, name: str, data: np.ndarray) -> Handle:
        """Elementwise sum over ranks of float32, float64, int32 or int64."""
        self.sent_bytes += data.nbytes
        self.link_bytes += 2 * (self.size - 1) / self.size * data.nbytes
        return self._allreduce(name, data)

    @abstractmethod
    def _allgather(self, name: str, data: Data) -> Handle: ...

    @abstractmethod
    def _alltoall(self, name: str, data: Data, splits: np.ndarray) -> Handle: ...

    @abstractmethod
    def _allreduce(self, name: str, data: np.ndarray) -> Handle: ...


@dataclass(frozen=True)
class Hosts:
    """The two directions of ranks that share hosts, all hosts with as many ranks.

    ``inside`` connects the ranks of this host; ``across`` connects the ranks that have this rank's
    place on their hosts, in the same order of hosts for every place.
    """

    inside: Transport
    across: Transport


class HorovodTransport(Transport):
    """Stock Horovod's asynchronous collectives."""

    def __init__(self, process_set: Any = None) -> None:
        import horovod.torch as hvd

        self._hvd = hvd
        self._set = hvd.global_process_set if process_set is None else process_set
        self.rank, self.size = self._set.rank(), self._set.size()
        self.device_way = device_way(hvd)

    def why_not(self, device: str) -> str:
        return why_not_device(self._hvd, device)

    def _allgather(self, name: str, data: Data) -> Handle:
        convert = _like(data)
        return self._enqueue(self._hvd.allgather_async, name, _tensor(data), convert=convert)

    def _alltoall(self, name: str, data: Data, splits: np.ndarray) -> Handle:
        counts = _tensor(np.ascontiguousarray(splits, np.int32))
        convert = _like(data)
        return self._enqueue(
            self._hvd.alltoall_async,
            name,
            _tensor(data),
            splits=counts,
            convert=lambda out: (convert(out[0]), _array(out[1])),
        )

    def _allreduce(self, name: str, data: np.ndarray) -> Handle:
        return self._enqueue(
            self._hvd.allreduce_async, name, _tensor(data), op=self._hvd.Sum, convert=_array
        )

    def _enqueue(self, call: Any, name: str, tensor: Any, convert: Any, **options: Any) -> Handle:
        try:
            handle = call(tensor, name=name, process_set=self._set, **options)
        except self._hvd.HorovodInternalError as e:  # it has been shut down already
            raise _explained(e, self.rank, name) from None
        return HorovodHandle(self._hvd, handle, self.rank, name, convert)


def why_not_device(hvd: Any, device: str) -> str:
    """Why a build of Horovod cannot be handed tensors on a device; empty where it can."""
    if device.startswith("cuda") and not hvd.cuda_built():
        return "Horovod was built without CUDA"
    if os.environ.get("HOROVOD_ENABLE_ASYNC_COMPLETION", "0") not in ("", "0"):
        # The stream of Horovod's own thread would wait for the bytes then, and no other.
        return "HOROVOD_ENABLE_ASYNC_COMPLETION ends collectives before their bytes are there"
    return ""


def device_way(hvd: Any) -> str:
    """By what a build of Horovod moves tensors on devices, as far as it tells."""
    if not hvd.nccl_built():
        return "by MPI: Horovod was built without NCCL"
    # The build has NCCL; for which operations it was to be used, the library does not say.
    return "through NCCL, if Horovod was built with HOROVOD_GPU_OPERATIONS=NCCL"


class HorovodHandle(Handle):
    """An asynchronous collective of stock Horovod's.

    Args:
        hvd: ``horovod.torch``.
        handle: what its ``…_async`` function returned.
        rank, name: for messages.
        convert: makes the result of what Horovod returns.
    """

    def __init__(
        self,
        hvd: Any,
        handle: int,
        rank: int,
        name: str,
        convert: Callable[[Any], Any] = lambda output: output,
    ) -> None:
        self._hvd, self._handle, self._convert = hvd, handle, convert
        self.rank, self.name = rank, name
        self._since = time.monotonic()
        self._look_at = self._since + LOST_S
        self._lost = False

    def done(self) -> bool:
        if self._hvd.poll(self._handle):
            return True
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOST_S
            # In this order: what was in the queue at the end has been told before.
            self._lost = _has_ended(self._hvd, self._since) and not self._hvd.poll(self._handle)
        return self._lost

    def result(self) -> Any:
        try:
            if self._lost:
                raise self._hvd.HorovodInternalError("Horovod had been shut down before")
            return self._convert(self._hvd.synchronize(self._handle))
        except self._hvd.HorovodInternalError as e:
            raise _explained(e, self.rank, self.name) from None


class _Inquiry(threading.Thread):
    """Asks, in a thread of its own, whether Horovod's thread has left its loop.

    With dynamic process sets the answer waits for a lock that Horovod holds while it waits for
    other ranks, so whoever must stay awake cannot ask.
    """

    latest: _Inquiry | None = None

    def __init__(self, hvd: Any) -> None:
        super().__init__(name="horovod_qoda-inquiry", daemon=True)
        self._library, self._size = hvd.mpi_ops._basics.MPI_LIB_CTYPES, hvd.size()
        self.asked = time.monotonic()
        self.ended = False

    def run(self) -> None:
        # hvd.is_initialized() stays true where another rank asked for the shutdown; the global
        # process set (0) has no ranks any more.
        ranks = (ctypes.c_int * self._size)()
        self.ended = self._library.horovod_process_set_ranks(ctypes.c_int(0), ranks) < 0


def _has_ended(hvd: Any, since: float) -> bool:
    """Whether nobody will look into Horovod's queue again, as far as was found out after ``since``.

    Never waits: asks, and says at a later call what the answer was.
    """
    inquiry = _Inquiry.latest
    if inquiry is not None and inquiry.is_alive():
        return False
    if inquiry is not None and inquiry.ended and inquiry.asked >= since:
        return True
    _Inquiry.latest = _Inquiry(hvd)
    _Inquiry.latest.start()
    return False


def _explained(error: Exception, rank: int, name: str) -> Exception:
    why = (
        "another rank is at a different place of the script"
        if "ismatched" in str(error)
        else "another rank raised an error (see its traceback), was ended, or ran out of batches "
        f"({EQUAL_BATCHES})"
    )
    return type(error)(
        f"rank {rank}: the collective {name!r} failed, most likely because {why}. Horovod says: "
        f"{error}"
    )


def _tensor(data: Data) -> Any:
    import torch

    return torch.from_numpy(data) if isinstance(data, np.ndarray) else data


def _array(tensor: Any) -> np.ndarray:
    return tensor.numpy()


def _like(data: Data) -> Callable[[Any], Data]:
    """Makes of a tensor what ``data`` is."""
    return _array if isinstance(data, np.ndarray) else lambda tensor: tensor


class LocalTransport(Transport):
    """Ranks are threads of one process; made by :func:`local_transports`, for tests."""

    def __init__(self, rank: int, size: int, board: _Board) -> None:
        self.rank, self.size, self._board = rank, size, board

    def _allgather(self, name: str, data: Data) -> Handle:
        array, back = _through_host(data)
        return self._board.post(name, self.rank, array, lambda parts: back(np.concatenate(parts)))

    def _alltoall(self, name: str, data: Data, splits: np.ndarray) -> Handle:
        array, back = _through_host(data)
        pieces = np.split(array, np.cumsum(splits)[:-1])

        def mine(parts: list[Any]) -> tuple[Data, np.ndarray]:
            received = [part[self.rank] for part in parts]
            return back(np.concatenate(received)), np.array([len(x) for x in received], np.int32)

        return self._board.post(name, self.rank, pieces, mine)

    def _allreduce(self, name: str, data: np.ndarray) -> Handle:
        return self._board.post(
            name, self.rank, data.copy(), lambda parts: np.sum(parts, axis=0, dtype=data.dtype)
        )


def _through_host(data: Data) -> tuple[np.ndarray, Callable[[np.ndarray], Data]]:
    """(a copy of ``data`` that all threads can read, what makes its like of an array)."""
    if isinstance(data, np.ndarray):
        return data.copy(), lambda array: array
    return data.to("cpu", copy=True).numpy(), lambda array: _tensor(array).to(data.device)


class _Board:
    """Where threads leave what they send; a collective is complete when all have posted."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._parts: dict[tuple[str, int], dict[int, Any]] = {}
        self._turn: dict[tuple[str, int], int] = {}
        self._taken: dict[tuple[str, int], int] = {}

    def post(self, name: str, rank: int, part: Any, combine: Callable[[list[Any]], Any]) -> Handle:
        with self._lock:
            turn = self._turn.get((name, rank), 0)
            self._turn[name, rank] = turn + 1
            self._parts.setdefault((name, turn), {})[rank] = part
        return _LocalHandle(self, (name, turn), combine)

    def ready(self, key: tuple[str, int]) -> bool:
        with self._lock:
            return len(self._parts[key]) == self._size

    def take(self, key: tuple[str, int]) -> list[Any]:
        """The parts of all ranks; forgotten once every rank has taken them."""
        with self._lock:
            parts = self._parts[key]
            self._taken[key] = self._taken.get(key, 0) + 1
            if self._taken[key] == self._size:
                del self._parts[key], self._taken[key]
        return [parts[rank] for rank in range(self._size)]


class _LocalHandle(Handle):
    def __init__(self, board: _Board, key: tuple[str, int], combine: Callable[..., Any]) -> None:
        self._board, self._key, self._combine = board, key, combine

    def done(self) -> bool:
        return self._board.ready(self._key)

    def result(self) -> Any:
        return self._combine(self._board.take(self._key))


def local_hosts(hosts: int, each: int) -> list[Hosts]:
    """In-process hosts of ``each`` ranks; rank r is on host r // each."""
    inside = [local_transports(each) for _ in range(hosts)]
    across = [local_transports(hosts) for _ in range(each)]
    return [Hosts(inside[h][p], across[p][h]) for h in range(hosts) for p in range(each)]


def local_transports(size: int) -> list[LocalTransport]:
    """``size`` connected in-process transports, one for each thread."""
    board = _Board(size)
    return [LocalTransport(rank, size, board) for rank in range(size)]
