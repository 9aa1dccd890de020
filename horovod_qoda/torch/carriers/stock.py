"""Gradients by stock Horovod's all-reduce, waited for as our own collectives are."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

from horovod_qoda.coding import change_stats, copy_stats
from horovod_qoda.exchange import ExchangeRecord, Sums
from horovod_qoda.ranges import ranged
from horovod_qoda.torch.carriers.carrier import Carrier, Result
from horovod_qoda.transport import HorovodHandle, Transport


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
        names: of the parameters, for messages.
        send: stock ``_allreduce_grad_async``, bound to the optimizer.
        compression: what ``send`` compresses with.
        aux: gives the scalar that rank 0 sends along.
    """

    in_place = True

    def __init__(
        self,
        names: list[str],
        parameters: list[torch.Tensor],
        send: Callable[[torch.Tensor], Result],
        compression: CountedCompression,
        transport: Transport,
        number: int,
        scale: int,
        wants_sums: bool,
        aux: Callable[[], float] | None,
    ) -> None:
        self.name = f"horovod_qoda.{number}"
        self.wants_sums = wants_sums
        self._names, self._parameters = names, parameters
        self._send = send
        self._compression = compression
        self._transport = transport
        self._results: dict[int, Result] = {}
        self._scale = scale
        self._aux = aux
        self._own: list[float] = [0.0, 0.0]
        self._previous: dict[int, torch.Tensor] = {}  # flat, float32
        self._number = 0
        self._begun = self._waited = 0.0
        self._sent = 0

    @ranged("horovod_qoda.put")
    def put(self, layer: int, p: torch.Tensor) -> None:
        if not self._results:
            self._begun = time.perf_counter()
        if p.grad is not None and self.wants_sums:
            self._add_sums(layer, p.grad)
        self._results[layer] = self._send(p)

    def result(self, layer: int, p: torch.Tensor) -> Result:
        handle, ctx = self._results[layer]
        if not callable(handle):
            handle = HorovodHandle(hvd, handle, self._transport.rank, self._names[layer]).wait

        @ranged("horovod_qoda.wait")
        def wait() -> torch.Tensor:
            begin = time.perf_counter()
            output = handle()
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

    def abandon(self) -> None:
        self._results.clear()
        self._own = [0.0, 0.0]
        self._waited = 0.0

    def local_state_dict(self) -> dict[str, Any]:
        return {"previous": {i: g.clone() for i, g in self._previous.items()}}

    def load_local_state_dict(self, state: dict[str, Any]) -> None:
        self._previous = {i: g.clone() for i, g in state.get("previous", {}).items()}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        self._previous.clear()

    def _add_sums(self, layer: int, gradient: torch.Tensor) -> None:
        dense = gradient.to_dense() if gradient.is_sparse else gradient
        now = dense.detach().to("cpu", torch.float32).reshape(-1).numpy()
        before = self._previous.get(layer)
        if before is None:
            square, finite = copy_stats(now)
            change = square
        else:
            square, finite, change = change_stats(now, before.numpy())
        self._own[0] += square
        self._own[1] += change
        if not finite:
            return
        if before is None:
            self._previous[layer] = torch.from_numpy(now.copy())
        else:
            np.copyto(before.numpy(), now)

    def _gather_sums(self) -> Sums:
        mine = np.array([*self._own, self._aux() if self._aux else 0.0])
        table = self._transport.allgather(self.name + ".sums", mine).wait().reshape(-1, 3)
        factor = (self._scale / self._transport.size) ** 2
        sum_sq, sum_sq_diff, _ = (table.sum(axis=0) * factor).tolist()
        self._own = [0.0, 0.0]
        return Sums(sum_sq, sum_sq_diff, float(table[0, 2]))
