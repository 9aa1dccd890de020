"""Which stream the work on a device is queued on, and what it waits for: events, never the device.

Where Triton's interpreter stands in for a device there are no streams, and it runs one kernel at a
time: a lock of all threads takes their place.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_ONE_KERNEL = threading.RLock()


class Streams:
    """Two streams of one device for one exchange.

    Gradients are copied in on the first as they are computed. Were it the second one, on which
    payloads are made and read, then these would wait for all gradients whose copies the training
    thread, far ahead of the device, has queued before.

    Attributes:
        work: the second stream; None in the interpreter.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        on_gpu = device.type == "cuda"
        self.work: Any = torch.cuda.Stream(device) if on_gpu else None
        self._intake: Any = torch.cuda.Stream(device) if on_gpu else None
        self._one_taker = threading.Lock()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Inside, the calling thread queues on :attr:`work`."""
        with self._on(self.work):
            yield

    @contextmanager
    def taking(self, source: torch.Tensor | None) -> Iterator[None]:
        """Inside, the calling thread queues on the stream of gradients, behind everything it has
        queued so far for ``source``, whose memory is not reused before that is done."""
        there = source if source is not None and source.is_cuda else None
        producer = torch.cuda.current_stream(there.device) if there is not None else None
        with self._one_taker, self._on(self._intake):
            if producer is not None:
                self._intake.wait_stream(producer)
            yield
            # A copy between devices runs on the producer's stream, in whose order memory is reused.
            if there is not None and there.device == self.device:
                there.record_stream(self._intake)

    def share(self, tensor: torch.Tensor) -> None:
        """The stream of gradients may use a tensor made while :meth:`working`."""
        if self._intake is not None:
            self._intake.wait_stream(self.work)
            tensor.record_stream(self._intake)

    def follow(self) -> None:
        """What is queued on :attr:`work` from now on waits for the caller's current stream."""
        if self.work is not None:
            self.work.wait_stream(torch.cuda.current_stream(self.device))

    @contextmanager
    def _on(self, stream: Any) -> Iterator[None]:
        if stream is None:
            with _ONE_KERNEL:
                yield
        else:
            with torch.cuda.device(self.device), torch.cuda.stream(stream):
                yield


class Mark:
    """A place in a stream's queue that the host can ask about."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event() if device.type == "cuda" else None

    def set(self) -> None:
        """Here, behind what the current stream has to do so far."""
        if self._event is not None:
            self._event.record()

    def passed(self) -> bool:
        return self._event is None or self._event.query()

    def wait(self) -> None:
        """Blocks the host."""
        if self._event is not None:
            self._event.synchronize()
