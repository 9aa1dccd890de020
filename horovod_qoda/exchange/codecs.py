"""What an exchange does with floats, written once for floats in host memory and on a device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from horovod_qoda import coding
from horovod_qoda.coding import Header
from horovod_qoda.transport import Handle

Floats = Any
"""Float32 coordinates: a NumPy array, or a torch tensor on the codec's device. Slices of both are
views."""

Places = Sequence[int] | np.ndarray

Statistics = tuple[float, bool]
"""Sum of squares, in the order of :func:`horovod_qoda.coding.copy_stats`; whether all is finite."""


@dataclass(frozen=True)
class Blob:
    """uint8 memory of framed payloads, which collectives take as it is; slices are views.

    Attributes:
        host: in host memory. Where ``there`` is something it has what the host writes and reads,
            frames and meta parts, and what it has besides means nothing.
        there: a tensor on a device with all of it, if that is where it travels from.
    """

    host: np.ndarray
    there: Any | None = None

    def __getitem__(self, part: slice) -> Blob:
        return Blob(self.host[part], None if self.there is None else self.there[part])

    def __len__(self) -> int:
        return len(self.wire)

    @property
    def wire(self) -> Any:
        """What to hand to a collective."""
        return self.host if self.there is None else self.there


class Intake(ABC):
    """Takes the gradients of one buffer in without waiting for the device that computes them."""

    @abstractmethod
    def put(self, part: int, gradient: Any) -> None:
        """Queues the copy of a torch tensor, or of zeros for None, into a part of the buffer."""

    @abstractmethod
    def done(self) -> bool:
        """Whether everything that was put is there."""

    @abstractmethod
    def statistics(self) -> list[Statistics]:
        """Of every part, once everything is there."""


class Arrival(Handle):
    """What a job waits for that has to wait for gradients; its result is nothing."""

    collective = False
    name = "gradients still being computed"

    def __init__(self, intake: Intake) -> None:
        self._intake = intake

    def done(self) -> bool:
        return self._intake.done()

    def result(self) -> None:
        return None


class Codec(ABC):
    """Arithmetic and coding where the floats of a buffer lie.

    All versions give the same bits: sums in the same order, the same payloads, the same means.

    Attributes:
        device: a torch device; None for the host.
        sends: whether payloads, and floats within a host, travel as tensors on the device, the same
            on all ranks; false until they have agreed on it.
    """

    device: Any | None = None
    sends: bool = False

    @abstractmethod
    def zeros(self, size: int) -> Floats: ...

    @abstractmethod
    def bytes(self, size: int) -> Blob:
        """Uninitialised memory to write payloads to."""

    @abstractmethod
    def post(self, blob: Blob, front: int, stop: int) -> None:
        """Makes a blob ready to travel: the host has written its first ``front`` bytes, and what
        is behind ``stop`` is to be zeros."""

    @abstractmethod
    def host_bytes(self, received: Any, start: int, stop: int) -> np.ndarray:
        """A part of what a collective returned, in host memory."""

    @abstractmethod
    def arrived(self, received: Any, start: int, stop: int, front: np.ndarray) -> Blob:
        """A part of what a collective returned, the beginning of which is ``front``."""

    @abstractmethod
    def working(self) -> AbstractContextManager[None]:
        """Inside, collectives take what the codec has queued, in its order."""

    @abstractmethod
    def intake(self, values: Floats, starts: np.ndarray, numel: np.ndarray) -> Intake | None:
        """For gradients to be copied into these parts of ``values``; None where the caller copies
        them and takes their statistics at once."""

    @abstractmethod
    def statistics(
        self, values: Floats, starts: Places, numel: Places, threads: int = 1
    ) -> list[Statistics]:
        """Of parts of ``values``."""

    @abstractmethod
    def change_stats(self, now: Floats, before: Floats) -> tuple[float, bool, float]:
        """As :func:`horovod_qoda.coding.change_stats`."""

    @abstractmethod
    def subtract(self, a: Floats, b: Floats, out: Floats) -> None:
        """out = a - b"""

    @abstractmethod
    def average(self, vectors: Floats, count: int, out: Floats) -> None:
        """out = the mean of ``count`` vectors, two or more, that lie one behind the other; summed
        in that order."""

    @abstractmethod
    def clear_nonfinite(self, values: Floats) -> None:
        """Puts zeros where values are not finite."""

    @abstractmethod
    def copy(self, source: Floats, into: Floats) -> None: ...

    @abstractmethod
    def encode(
        self,
        values: Floats,
        rows: np.ndarray,
        header: Header,
        out: Blob,
        *,
        decoded: Floats | None,
        threads: int,
        **settings: Any,
    ) -> int:
        """As :func:`horovod_qoda.coding.encode`, from floats here to bytes where they travel."""

    @abstractmethod
    def decode_sum(
        self,
        payloads: list[Blob],
        rows: np.ndarray,
        out: Floats,
        *,
        threads: int,
        **settings: Any,
    ) -> list[Header]:
        """As :func:`horovod_qoda.coding.decode_sum`; the sum is there when it returns."""

    @abstractmethod
    def host_room(self, values: Floats) -> np.ndarray:
        """Host memory for a copy of ``values``: they themselves, where they lie there."""

    @abstractmethod
    def fetch(self, values: Floats, into: np.ndarray | None = None) -> np.ndarray:
        """The values in host memory: in ``into``, which :meth:`host_room` gave, or in memory of
        their own. Not a copy where they lie there."""

    @abstractmethod
    def load(self, array: np.ndarray, into: Floats) -> None:
        """Copies host memory into ``into``; nothing to do where it is that."""

    @abstractmethod
    def hand_over(self, values: Floats, room: Callable[[], np.ndarray]) -> Any:
        """What to hand to a collective that moves floats: ``values`` where they may travel from
        here, else a copy of them in ``room()``, which :meth:`host_room` gave."""

    @abstractmethod
    def take(self, received: Any, room: Callable[[], Floats]) -> Floats:
        """The floats that a collective returned, here: in ``room()`` where they came elsewhere."""

    @abstractmethod
    def release(self) -> None:
        """The calling thread has queued its last use of the means of this exchange."""


class HostCodec(Codec):
    """NumPy arrays and the native codec."""

    def zeros(self, size: int) -> np.ndarray:
        """At a multiple of 64 bytes: vectors that straddle cache lines cost the codec 2 to 9 %, and
        NumPy aligns to 16."""
        memory = np.zeros(size + 16, np.float32)
        start = -memory.ctypes.data % 64 // 4
        return memory[start : start + size]

    def bytes(self, size: int) -> Blob:
        return Blob(np.empty(size, np.uint8))

    def post(self, blob: Blob, front: int, stop: int) -> None:
        blob.host[stop:] = 0

    def host_bytes(self, received: np.ndarray, start: int, stop: int) -> np.ndarray:
        return received[start:stop]

    def arrived(self, received: np.ndarray, start: int, stop: int, front: np.ndarray) -> Blob:
        return Blob(received[start:stop])

    def working(self) -> AbstractContextManager[None]:
        return nullcontext()

    def intake(self, values: Floats, starts: np.ndarray, numel: np.ndarray) -> None:
        return None

    def statistics(
        self, values: np.ndarray, starts: Places, numel: Places, threads: int = 1
    ) -> list[Statistics]:
        return [
            coding.copy_stats(values[int(at) : int(at) + int(n)], threads=threads)
            for at, n in zip(starts, numel, strict=True)
        ]

    def change_stats(self, now: np.ndarray, before: np.ndarray) -> tuple[float, bool, float]:
        return coding.change_stats(now, before)

    def subtract(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        np.subtract(a, b, out=out)

    def average(self, vectors: np.ndarray, count: int, out: np.ndarray) -> None:
        rows = vectors.reshape(count, len(out))
        np.add(rows[0], rows[1], out=out)
        for row in rows[2:]:
            out += row
        out *= np.float32(1 / count)

    def clear_nonfinite(self, values: np.ndarray) -> None:
        values[~np.isfinite(values)] = 0

    def copy(self, source: np.ndarray, into: np.ndarray) -> None:
        np.copyto(into, source)

    def encode(
        self, values: np.ndarray, rows: np.ndarray, header: Header, out: Blob, **settings: Any
    ) -> int:
        return coding.encode(values, rows, header, out.host, **settings)

    def decode_sum(
        self, payloads: list[Blob], rows: np.ndarray, out: np.ndarray, **settings: Any
    ) -> list[Header]:
        return coding.decode_sum([payload.host for payload in payloads], rows, out, **settings)

    def host_room(self, values: np.ndarray) -> np.ndarray:
        return values

    def fetch(self, values: np.ndarray, into: np.ndarray | None = None) -> np.ndarray:
        return values

    def load(self, array: np.ndarray, into: np.ndarray) -> None:
        if array is not into:
            np.copyto(into, array)

    def hand_over(self, values: np.ndarray, room: Callable[[], np.ndarray]) -> np.ndarray:
        return values

    def take(self, received: np.ndarray, room: Callable[[], np.ndarray]) -> np.ndarray:
        return received

    def release(self) -> None:
        pass


HOST = HostCodec()
