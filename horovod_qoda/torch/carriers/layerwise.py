"""Gradients by our exchange: quantised, entropy coded, averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from horovod_qoda import layout as layouts
from horovod_qoda.exchange import Exchange, ExchangeRecord, Sums
from horovod_qoda.settings import Settings
from horovod_qoda.torch.carriers.carrier import Carrier, Result
from horovod_qoda.transport import Hosts, Transport


class LayerwiseCarrier(Carrier):
    """Our exchange: quantised, entropy coded, averaged.

    Args:
        scale: 1 for the mean, the number of ranks for the sum.
        aux: gives the scalar that rank 0 sends along.
        find_hosts: which ranks share hosts, under these settings, given whether gradients are coded
            on a device here; a collective call.
        kinds: kinds of layers by name, where their modules are known.
    """

    def __init__(
        self,
        names: list[str],
        parameters: list[torch.Tensor],
        settings: Settings,
        transport: Transport,
        number: int,
        *,
        scale: int,
        wants_sums: bool,
        sparse_as_dense: bool,
        aux: Callable[[], float] | None,
        find_hosts: Callable[[Settings, bool], Hosts | None],
        kinds: dict[str, str],
    ) -> None:
        self._described = [
            (n, tuple(p.shape), str(p.dtype)) for n, p in zip(names, parameters, strict=True)
        ]
        self._parameters = parameters
        self.wants_sums = wants_sums
        self._settings, self._transport, self._number = settings, transport, number
        self._scale = scale
        self._sparse_as_dense = sparse_as_dense
        self._aux = aux
        self._find_hosts = find_hosts
        self._kinds = kinds
        self._hosts: Hosts | None = None
        self._looked_for = ""
        self._sparse: set[int] = set()
        # Until the first step nobody knows which layers are sparse, nor what state belongs where.
        self._settled = self.agreed = False
        self._loaded: dict[str, Any] = {}
        self._loaded_local: dict[str, Any] = {}
        self._lay_out()
        self.name = self.exchange.name

    def settle(self, sparse: np.ndarray) -> None:
        if self._devices != [p.device for p in self._parameters]:
            self._lay_out()  # models are moved to their device after they were wrapped, too
        self._agree()
        if not self._sparse_as_dense:
            mine = sparse.astype(np.uint8)
            gathered = self._transport.allgather(self.name + ".sparse", mine).wait()
            table = gathered.reshape(self._transport.size, -1)
            self._sparse = set(np.flatnonzero(table.any(axis=0)).tolist())
        if self._sparse:
            self._lay_out()
        self._settled = True
        if self._loaded:
            self.exchange.load_state_dict(self._loaded)
        if self._loaded_local:
            self.exchange.load_local_state_dict(self._loaded_local)
        self._loaded, self._loaded_local = {}, {}
        self.exchange.disagree()

    def agree(self) -> None:
        self._agree()
        self.agreed = True

    def disagree(self) -> None:
        self.exchange.disagree()
        self.agreed = False

    def no_gradient(self, layer: int, p: torch.Tensor) -> torch.Tensor:
        if layer not in self._sparse:
            return torch.zeros_like(p)
        rows = torch.zeros((1, 0), dtype=torch.long, device=p.device)
        none = p.new_zeros((0, *p.shape[1:]))
        return torch.sparse_coo_tensor(rows, none, p.shape, check_invariants=False)

    def put(self, layer: int, p: torch.Tensor) -> None:
        if layer in self._sparse:
            return
        gradient = p.grad
        if gradient is not None and gradient.is_sparse:
            if not self._sparse_as_dense:
                raise RuntimeError(
                    f"the gradient of {self._described[layer][0]!r} became sparse after the first "
                    "step; pass sparse_as_dense=True to DistributedOptimizer"
                )
            gradient = gradient.to_dense()
        self.exchange.put(self._place[layer], gradient)

    def count_sparse(self, gradient: torch.Tensor) -> None:
        """Counts what Horovod's sparse path is about to send."""
        self._transport.sent_bytes += gradient._values().nbytes + gradient._indices().nbytes

    def result(self, layer: int, p: torch.Tensor) -> Result:
        def wait() -> torch.Tensor:
            mean = self.exchange.mean(self._place[layer])
            if isinstance(mean, np.ndarray):
                mean = torch.from_numpy(mean)
            assert p.grad is not None
            # Copied into the gradient's own memory: Horovod makes p.grad an alias of what is
            # returned, and the buffer is written again by the next exchange.
            out = torch.empty_like(p) if p.grad.is_sparse else p.grad
            out.copy_(mean.view(p.shape))
            return out.mul_(self._scale) if self._scale != 1 else out

        return wait, None

    def finish(self) -> tuple[ExchangeRecord, Sums]:
        record, sums = self.exchange.finish()
        square = self._scale**2
        return record, Sums(sums.sum_sq * square, sums.sum_sq_diff * square, sums.aux)

    def abandon(self) -> None:
        if self.exchange.under_way:
            # A job of the old exchange may never end: it keeps its own buffers and thread.
            self._replace_exchange(self._settings)

    def change(self, settings: Settings) -> None:
        """Other settings from the next exchange on, which all ranks then have to agree on."""
        self._replace_exchange(settings)

    def _replace_exchange(self, settings: Settings) -> None:
        before, kept = self.exchange, self._settings
        self._settings = settings
        try:
            self._lay_out()
        except ValueError:
            self._settings = kept
            raise
        self.agreed = False
        before.close()
        self.exchange.load_state_dict(before.state_dict())
        # Vectors lie in the buffers in the order of the layers' types.
        if (before.layout.buffers, before.topology) == (
            self.layout.buffers,
            self.exchange.topology,
        ):
            self.exchange.load_local_state_dict(before.local_state_dict())

    def state_dict(self) -> dict[str, Any]:
        return self._loaded or self.exchange.state_dict()

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        if self._settled and state:
            self.exchange.load_state_dict(state)
            self.agreed = False
        elif not self._settled:
            self._loaded, self._loaded_local = state or {}, {}

    def local_state_dict(self) -> dict[str, Any]:
        return self._loaded_local or self.exchange.local_state_dict()

    def load_local_state_dict(self, state: dict[str, Any]) -> None:
        if self._settled:
            self.exchange.load_local_state_dict(state)
        else:
            self._loaded_local = state

    def _agree(self) -> None:
        self.exchange.agree()
        if self._looked_for == self._settings.topology:
            return
        # Only now is it certain that all ranks look.
        leave = any(not codec.sends for codec in self.exchange.routes.placement.codecs)
        self._hosts = self._find_hosts(self._settings, leave)
        self._looked_for = self._settings.topology
        if self._hosts is not None:
            self._replace_exchange(self._settings)
            self.exchange.agree()

    def _lay_out(self) -> None:
        dense = [i for i in range(len(self._described)) if i not in self._sparse]
        self._place = {layer: k for k, layer in enumerate(dense)}
        sparse = [self._described[i][0] for i in sorted(self._sparse)]
        described = [self._described[i] for i in dense]
        layout = layouts.build(described, self._settings, sparse, self._kinds)
        self._devices = [p.device for p in self._parameters]
        self.exchange = Exchange(
            layout, self._settings, self._transport, self._number, self.wants_sums, self._aux,
            self._hosts, [self._devices[i] for i in dense],
        )  # fmt: skip
        self.layout = layout
