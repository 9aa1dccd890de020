"""Who carries the gradients of one optimizer: our exchange, or stock Horovod's all-reduce."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from horovod.torch.mpi_ops import Average

from horovod_qoda import layout as layouts
from horovod_qoda.exchange import Exchange, ExchangeRecord, Sums
from horovod_qoda.settings import Settings
from horovod_qoda.transport import Transport

Result = tuple[Callable[[], torch.Tensor] | int, Any]
"""What stock ``synchronize()`` takes for a parameter: a handle, or a callable, and a context."""


class Carrier(ABC):
    """Sends gradients when told and hands back what stock ``synchronize()`` waits for."""

    name: str
    wants_sums: bool
    in_place = False
    """Whether the collective writes into the gradient while it is under way."""

    @abstractmethod
    def put(self, layer: int, p: torch.Tensor) -> None:
        """Sends the gradient of a layer as it is now."""

    @abstractmethod
    def result(self, layer: int, p: torch.Tensor) -> Result:
        """Handle of the averaged gradient."""

    @abstractmethod
    def finish(self) -> tuple[ExchangeRecord, Sums]:
        """Ends the exchange after all results have been taken."""


class LayerwiseCarrier(Carrier):
    """Our exchange: quantised, entropy coded, averaged."""

    def __init__(
        self,
        names: list[str],
        parameters: list[torch.Tensor],
        settings: Settings,
        transport: Transport,
        number: int,
        *,
        op: Any,
        wants_sums: bool,
        sparse_as_dense: bool,
    ) -> None:
        described = [
            (n, tuple(p.shape), str(p.dtype)) for n, p in zip(names, parameters, strict=True)
        ]
        self.layout = layouts.build(described, settings)
        self.wants_sums = wants_sums
        self.exchange = Exchange(self.layout, settings, transport, number, wants_sums)
        self.name = self.exchange.name
        self._scale = 1 if op == Average else transport.size
        self._sparse_as_dense = sparse_as_dense

    def put(self, layer: int, p: torch.Tensor) -> None:
        gradient = p.grad
        if gradient is not None and gradient.is_sparse:
            # A sparse gradient travels by Horovod's own sparse path; its place here stays zero.
            gradient = gradient.to_dense() if self._sparse_as_dense else None
        self.exchange.put(layer, gradient)

    def result(self, layer: int, p: torch.Tensor) -> Result:
        def wait() -> torch.Tensor:
            mean = torch.from_numpy(self.exchange.mean(layer)).view(p.shape)
            assert p.grad is not None
            # Copied into the gradient's own memory: Horovod makes p.grad an alias of what is
            # returned, and the buffer is written again by the next exchange.
            out = torch.empty(p.shape, dtype=p.dtype) if p.grad.is_sparse else p.grad
            out.copy_(mean)
            return out.mul_(self._scale) if self._scale != 1 else out

        return wait, None

    def finish(self) -> tuple[ExchangeRecord, Sums]:
        return self.exchange.finish()


class CountedCompression:
    """Horovod's compressor interface around another compressor, counting what it hands on."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.sent_bytes = 0

    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        out, ctx = self._inner.compress(tensor)
        self.sent_bytes += out.nbytes
        return out, ctx

    def decompress(self, tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        return self._inner.decompress(tensor, ctx)


class StockCarrier(Carrier):
    """Stock Horovod's in-place all-reduce of each parameter, with the script's compressor.

    Args:
        send: stock ``_allreduce_grad_async``, bound to the optimizer.
        compression: what ``send`` compresses with.
    """

    in_place = True

    def __init__(
        self,
        parameters: list[torch.Tensor],
        send: Callable[[torch.Tensor], Result],
        compression: CountedCompression,
        transport: Transport,
        number: int,
        wants_sums: bool,
    ) -> None:
        self.name = f"horovod_qoda.{number}"
        self.wants_sums = wants_sums
        self._parameters = parameters
        self._send = send
        self._compression = compression
        self._transport = transport
        self._results: dict[int, Result] = {}
        self._own: list[float] = [0.0, 0.0]
        self._previous: dict[int, torch.Tensor] = {}
        self._number = 0
        self._begun = self._waited = 0.0
        self._sent = 0

    def put(self, layer: int, p: torch.Tensor) -> None:
        if not self._results:
            self._begun = time.perf_counter()
        if p.grad is not None and self.wants_sums:
            self._add_sums(layer, p.grad)
        self._results[layer] = self._send(p)

    def result(self, layer: int, p: torch.Tensor) -> Result:
        from horovod.torch.mpi_ops import synchronize

        handle, ctx = self._results[layer]

        def wait() -> torch.Tensor:
            begin = time.perf_counter()
            output = handle() if callable(handle) else synchronize(handle)
            self._waited += time.perf_counter() - begin
            return output

        return wait, ctx

    def finish(self) -> tuple[ExchangeRecord, Sums]:
        busy = time.perf_counter() - self._begun
        sent, self._sent = self._compression.sent_bytes - self._sent, self._compression.sent_bytes
        raw = sum(p.numel() * p.element_size() for p in self._parameters)
        record = ExchangeRecord(
            exchange=self._number,
            topology="raw",
            coordinates=0,
            raw_bytes=raw,
            payload_bytes=sent,
            wire_bytes=sent,
            coded_bits=float("nan"),
            entropy_bits=float("nan"),
            encode_s=0.0,
            decode_s=0.0,
            exchange_s=busy,
            busy_s=busy,
            wait_s=self._waited,
        )
        sums = self._gather_sums() if self.wants_sums else Sums(0.0, 0.0, None)
        self._results.clear()
        self._number += 1
        self._waited = 0.0
        return record, sums

    def _add_sums(self, layer: int, gradient: torch.Tensor) -> None:
        now = (gradient.to_dense() if gradient.is_sparse else gradient).detach().clone()
        before = self._previous.get(layer)
        self._own[0] += float(now.double().square().sum())
        change = now if before is None else now.double() - before.double()
        self._own[1] += float(change.double().square().sum())
        self._previous[layer] = now

    def _gather_sums(self) -> Sums:
        pairs = self._transport.allgather(self.name + ".sums", np.array(self._own)).wait()
        total = pairs.reshape(-1, 2).sum(axis=0) / self._transport.size**2
        self._own = [0.0, 0.0]
        return Sums(float(total[0]), float(total[1]), None)
