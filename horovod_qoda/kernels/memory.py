"""Device buffers, pinned staging and the side stream of one coder, reused from call to call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_TORCH = {
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}

_ALIGN = 16  # bytes; kernels read any type at the start of an array

GROWTH = 1.25
"""Room over what was asked for: payload lengths vary a little from exchange to exchange."""


class Memory:
    """Named buffers that grow and are never given back.

    A name's buffer is overwritten by the next call with this name: all work of one call of a coder
    ends before the next begins.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._on_gpu = device.type == "cuda"
        self._device: dict[str, torch.Tensor] = {}
        self._host: dict[str, torch.Tensor] = {}
        self._stream = torch.cuda.Stream(device) if self._on_gpu else None
        self._event = torch.cuda.Event() if self._on_gpu else None

    @contextmanager
    def side_stream(self, stream: Any | None) -> Iterator[None]:
        """Work inside runs on ``stream`` (default: this memory's own), after what the caller's
        current stream has queued; what the caller queues afterwards waits for it."""
        if not self._on_gpu:
            yield
            return
        side: Any = self._stream if stream is None else stream
        current = torch.cuda.current_stream(self.device)
        side.wait_stream(current)
        try:
            with torch.cuda.device(self.device), torch.cuda.stream(side):
                yield
        finally:
            current.wait_stream(side)

    def wait(self) -> None:
        """Blocks the host until the side stream has done what was queued so far."""
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self.device))
            self._event.synchronize()

    def buffer(self, name: str, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """Uninitialised device tensor [numel]."""
        found = self._device.get(name)
        if found is None or found.numel() < numel or found.dtype != dtype:
            room = max(int(numel * GROWTH), 64)
            found = torch.empty(-(-room // _ALIGN) * _ALIGN, dtype=dtype, device=self.device)
            self._device[name] = found
        return found[:numel]

    def staging(self, name: str, nbytes: int) -> torch.Tensor:
        """Pinned uint8 tensor [nbytes] on the host."""
        found = self._host.get(name)
        if found is None or found.numel() < nbytes:
            room = max(int(nbytes * GROWTH), 4096)
            found = torch.empty(room, dtype=torch.uint8, pin_memory=self._on_gpu)
            self._host[name] = found
        return found[:nbytes]

    def upload(self, name: str, arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Copies arrays to the device in one transfer; returns flat tensors on the device."""
        places, size = {}, 0
        for key, array in arrays.items():
            places[key] = size
            size += -(-array.nbytes // _ALIGN) * _ALIGN
        size = max(size, _ALIGN)
        host = self.staging(name, size)
        view = host.numpy()
        for key, array in arrays.items():
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            view[places[key] : places[key] + flat.nbytes] = flat
        there = self.buffer(name, size, torch.uint8)
        there.copy_(host, non_blocking=True)
        return {
            key: there[places[key] : places[key] + array.nbytes].view(_TORCH[array.dtype])
            for key, array in arrays.items()
        }

    def download(self, name: str, tensor: torch.Tensor) -> np.ndarray:
        """Queues a copy to pinned memory; the array returned holds it after `wait`."""
        source = tensor.reshape(-1).view(torch.uint8)
        host = self.staging(name, source.numel())
        host.copy_(source, non_blocking=True)
        dtype: Any = next(n for n, t in _TORCH.items() if t == tensor.dtype)
        return host.numpy().view(dtype).reshape(tensor.shape)

    def every(self) -> list[torch.Tensor]:
        """All buffers, for tests that poison them."""
        return [*self._device.values(), *self._host.values()]
