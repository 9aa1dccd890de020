"""A wrapped optimizer gets its carrier, and the hooks that hand gradients to it."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from horovod.torch.mpi_ops import Average

from horovod_qoda.layer_kinds import kinds_of_modules
from horovod_qoda.settings import Settings
from horovod_qoda.torch.carriers import Carrier, LayerwiseCarrier, StockCarrier
from horovod_qoda.torch.gradients import Gradients
from horovod_qoda.torch.hosts import find_hosts
from horovod_qoda.transport import HorovodTransport

LOAD_KEY = "horovod_qoda_load"
"""In ``param_groups[0]``: 1 from a load to the next exchange. Horovod broadcasts it with the rest,
so ranks that did not load themselves learn that all must agree on the exchange's state again."""

_made: Counter[int] = Counter()

_alive: weakref.WeakSet[Any] = weakref.WeakSet()
"""Wrapped optimizers that somebody still holds."""


def attach(
    self: Any,
    settings: Settings | None,
    overlap: bool | str,
    replica_check_steps: int,
    model: Any = None,
) -> None:
    """Gives a wrapped optimizer its carrier and registers the hooks.

    Args:
        settings: of the layer-wise compressor; None sends by stock Horovod.
        model: module or modules that kinds of layers are read from.
    """
    parameters = [p for g in self.param_groups for p in g["params"] if p.requires_grad]
    if not parameters:
        raise ValueError("DistributedOptimizer: no parameter requires a gradient")
    names = [self._parameter_names[p] for p in parameters]
    transport = HorovodTransport(self.process_set)
    # Counted for each process set, because ranks outside of it make no exchange.
    process_set = int(self.process_set.process_set_id)
    number = process_set << 8 | _made[process_set]
    _made[process_set] += 1
    wants_sums = hasattr(self, "receive_sums")
    aux = _weak(self, "last_move_sq") if hasattr(self, "last_move_sq") else None
    scale = 1 if self.op == Average else transport.size
    carrier: Carrier
    if settings is not None:
        carrier = LayerwiseCarrier(
            names, parameters, settings, transport, number, scale=scale, wants_sums=wants_sums,
            sparse_as_dense=self.sparse_as_dense, aux=aux,
            find_hosts=partial(find_hosts, self.process_set, transport),
            kinds={} if model is None else kinds_of_modules(model, self._parameter_names),
        )  # fmt: skip
    else:
        send = _weak(self, "_stock_allreduce")
        carrier = StockCarrier(
            names, parameters, send, self._compression, transport, number, scale, wants_sums, aux
        )
    self.param_groups[0].setdefault(LOAD_KEY, 0)
    self._options = (settings, overlap, replica_check_steps, model)
    self._gradients = Gradients(names, parameters, carrier, transport, overlap, replica_check_steps)
    _take_over(self, parameters)
    for p in parameters:
        if p not in self._requires_update:
            self._requires_update.add(p)
            accumulator = p.expand_as(p).grad_fn.next_functions[0][0]
            accumulator.register_hook(self._make_hook(p))
            self._grad_accs.append(accumulator)


def _take_over(self: Any, parameters: list[torch.Tensor]) -> None:
    """Earlier optimizers of the same parameters no longer send during backward."""
    mine = set(map(id, parameters))
    for other in _alive:
        if other is not self and not mine.isdisjoint(map(id, other._gradients.parameters)):
            other._gradients.rule.retire("a later DistributedOptimizer has the same parameters")
    _alive.add(self)


def _weak(self: Any, name: str) -> Callable[..., Any]:
    """A method that does not keep its optimizer alive."""
    reference = weakref.ref(self)

    def call(*args: Any) -> Any:
        return getattr(reference(), name)(*args)

    return call
