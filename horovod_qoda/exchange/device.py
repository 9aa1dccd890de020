"""The exchange's arithmetic on one device: the kernels, and PyTorch for what needs none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from horovod_qoda import kernels
from horovod_qoda.coding import Header
from horovod_qoda.exchange.codecs import Blob, Codec, Intake, Places, Statistics


class _Intake(kernels.Intake, Intake):
    pass


class DeviceCodec(Codec):
    """Float32 tensors on one device; payloads travel from pinned memory of the host, or from there.

    Gradients may be put from any thread; all else is called by one thread at a time, the exchange's
    worker or, between two exchanges, the training thread. Methods that return a number or bytes
    wait for the device on the host; the others queue.

    Args:
        device: of CUDA, or the CPU where Triton's interpreter is on.
        host_coded: see `horovod_qoda.kernels.Coder`.
    """

    def __init__(self, device: torch.device, host_coded: int = 0) -> None:
        self.device: torch.device = device
        self.streams = kernels.Streams(device)
        self.coder = kernels.Coder(device, host_coded)

    def zeros(self, size: int) -> torch.Tensor:
        with self.streams.working():
            return torch.zeros(size, dtype=torch.float32, device=self.device)

    def bytes(self, size: int) -> Blob:
        host = self._pinned(size, torch.uint8)
        if not self.sends:
            return Blob(host)
        with self.streams.working():
            return Blob(host, torch.empty(size, dtype=torch.uint8, device=self.device))

    def post(self, blob: Blob, front: int, stop: int) -> None:
        if blob.there is None:
            blob.host[stop:] = 0
            return
        with self.streams.working():
            blob.there[:front].copy_(torch.from_numpy(blob.host[:front]), non_blocking=True)
            blob.there[stop:].zero_()

    def host_bytes(self, received: np.ndarray | torch.Tensor, start: int, stop: int) -> np.ndarray:
        if isinstance(received, np.ndarray):
            return received[start:stop]
        self._keep(received)
        with self.streams.working():
            return received[start:stop].to("cpu", copy=True).numpy()

    def arrived(
        self, received: np.ndarray | torch.Tensor, start: int, stop: int, front: np.ndarray
    ) -> Blob:
        part = received[start:stop]
        return Blob(part) if isinstance(part, np.ndarray) else Blob(front, part)

    def working(self) -> AbstractContextManager[None]:
        return self.streams.working()

    def intake(self, values: torch.Tensor, starts: np.ndarray, numel: np.ndarray) -> Intake:
        return _Intake(self.streams, values, starts, numel)

    def statistics(
        self, values: torch.Tensor, starts: Places, numel: Places, threads: int = 1
    ) -> list[Statistics]:
        with self.streams.working():
            return kernels.part_statistics(self.coder, values, starts, numel)

    def change_stats(self, now: torch.Tensor, before: torch.Tensor) -> tuple[float, bool, float]:
        with self.streams.working():
            return kernels.change_statistics(self.coder, now, before)

    def subtract(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        with self.streams.working():
            torch.sub(a, b, out=out)

    def average(self, vectors: torch.Tensor, count: int, out: torch.Tensor) -> None:
        rows = vectors.view(count, len(out))
        with self.streams.working():
            torch.add(rows[0], rows[1], out=out)
            for row in rows[2:]:
                out.add_(row)
            out.mul_(float(np.float32(1 / count)))

    def clear_nonfinite(self, values: torch.Tensor) -> None:
        with self.streams.working():
            values.nan_to_num_(0.0, 0.0, 0.0)

    def copy(self, source: torch.Tensor, into: torch.Tensor) -> None:
        with self.streams.working():
            into.copy_(source)

    def encode(
        self,
        values: torch.Tensor,
        rows: np.ndarray,
        header: Header,
        out: Blob,
        *,
        decoded: torch.Tensor | None,
        threads: int,
        **settings: Any,
    ) -> int:
        with self.streams.working():
            length = kernels.encode(
                values, rows, header, torch.from_numpy(out.host), there=out.there, **settings,
                **self._place,
            )  # fmt: skip
            if decoded is not None:
                settings.pop("histogram")
                self._decode([out[:length]], rows, decoded, expect=[header], **settings)
        return length

    def decode_sum(
        self,
        payloads: list[Blob],
        rows: np.ndarray,
        out: torch.Tensor,
        *,
        threads: int,
        **settings: Any,
    ) -> list[Header]:
        with self.streams.working():
            return self._decode(payloads, rows, out, **settings)

    def _decode(
        self, payloads: list[Blob], rows: np.ndarray, out: torch.Tensor, **settings: Any
    ) -> list[Header]:
        fronts = [payload.host for payload in payloads]
        wires = [payload.wire for payload in payloads]
        return kernels.decode_sum(wires, rows, out, fronts=fronts, **settings, **self._place)

    def host_room(self, values: torch.Tensor) -> np.ndarray:
        return self._pinned(len(values), torch.float32)

    def fetch(self, values: torch.Tensor, into: np.ndarray | None = None) -> np.ndarray:
        with self.streams.working():
            if into is None:
                return values.to("cpu", copy=True).numpy()
            torch.from_numpy(into).copy_(values)
            return into

    def load(self, array: np.ndarray, into: torch.Tensor) -> None:
        with self.streams.working():
            into.copy_(torch.from_numpy(array))

    def hand_over(
        self, values: torch.Tensor, room: Callable[[], np.ndarray]
    ) -> torch.Tensor | np.ndarray:
        return values if self.sends else self.fetch(values, room())

    def take(
        self, received: torch.Tensor | np.ndarray, room: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        if isinstance(received, torch.Tensor):
            self._keep(received)
            return received
        into = room()
        self.load(received, into)
        return into

    def release(self) -> None:
        self.streams.follow()

    @property
    def _place(self) -> dict[str, Any]:
        return {"stream": self.streams.work, "coder": self.coder}

    def _keep(self, received: torch.Tensor) -> None:
        """Horovod's thread has allocated it, for that thread's stream."""
        if received.is_cuda:
            received.record_stream(self.streams.work)

    def _pinned(self, size: int, dtype: torch.dtype) -> np.ndarray:
        return torch.empty(size, dtype=dtype, pin_memory=self.device.type == "cuda").numpy()
