"""``DistributedOptimizer``: Horovod's own optimizer class with a few of its functions replaced.

Horovod builds its optimizer by ``type(name, (User,), dict(_DistributedOptimizer.__dict__))`` and
finds the user's class by ``super(self.__class__, self)``, so the result cannot be subclassed.
The same call with our functions merged into that dict can: ``synchronize()`` stays Horovod's, which
accepts a callable where it expects a handle, and everything that recognises Horovod's optimizer by
its module still does.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import horovod.torch as hvd
import torch
from horovod.torch.optimizer import _DistributedOptimizer

from horovod_qoda.exchange import ExchangeRecord
from horovod_qoda.qoda import QODA
from horovod_qoda.torch.carriers import (
    Carrier,
    CountedCompression,
    LayerwiseCarrier,
    Result,
    StockCarrier,
)
from horovod_qoda.torch.compression import Compression, LayerwiseCompressor, SimulatedCompressor
from horovod_qoda.torch.gradients import Gradients
from horovod_qoda.transport import HorovodTransport

STATE_KEY = "horovod_qoda"

_stock = dict(_DistributedOptimizer.__dict__)
_numbers = itertools.count()


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Any = None,
    compression: Any = LayerwiseCompressor,
    backward_passes_per_step: int = 1,
    op: Any = hvd.Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,
    sparse_as_dense: bool = False,
    process_set: Any = hvd.global_process_set,
    *,
    overlap: bool | str = "auto",
    replica_check_steps: int = 0,
) -> Any:
    """Wraps an optimizer so that gradients are averaged over ranks, compressed, before each step.

    Takes what ``horovod.torch.DistributedOptimizer`` takes, with the same meaning, but for the
    default of ``compression``; and two arguments more.

    Args:
        compression: ``Compression.layerwise``, with or without settings, goes through the
            compressed exchange of this package; anything else through stock Horovod.
        gradient_predivide_factor: splits the average in stock Horovod, to keep float16 sums in
            range; without effect on the compressed exchange, which sums float32.
        groups, num_groups: for stock Horovod; the compressed exchange fuses by ``fusion_mb``.
        overlap: ``"auto"`` sends gradients during backward once three steps have shown that
            nothing happens to them afterwards; ``True`` from the second step on; ``False`` never.
        replica_check_steps: compare the parameters of all ranks every so many steps and raise where
            they differ; 0 never does. It hashes all parameters: choose hundreds of steps.

    Returns:
        An instance of a class derived from the optimizer's, with Horovod's methods
        (``synchronize``, ``skip_synchronize``, …) and ``add_listener``, ``no_sync``,
        ``local_state_dict``, ``load_local_state_dict``.

    Raises:
        ValueError: a bad setting, a rule that matches no layer, a name that is not unique.
        MismatchError: in the first step, on all ranks, where settings, models or parameters differ.
    """
    if op == hvd.Adasum:
        return hvd.DistributedOptimizer(
            optimizer,
            named_parameters,
            _stock_compression(compression),
            backward_passes_per_step,
            op,
            gradient_predivide_factor,
            num_groups,
            groups,
            sparse_as_dense,
            process_set,
        )
    if gradient_predivide_factor != 1.0 and op != hvd.Average:
        raise ValueError("gradient_predivide_factor needs op=Average")
    if backward_passes_per_step <= 0:
        raise ValueError(f"backward_passes_per_step must be > 0, not {backward_passes_per_step}")
    if num_groups:
        warnings.warn(
            "num_groups was replaced by groups in Horovod", DeprecationWarning, stacklevel=2
        )
    # Stock Horovod forgets what an optimizer that has stepped or loaded a checkpoint holds.
    state = optimizer.state_dict() if optimizer.state else None
    body = {**_stock, **_replacements}
    cls = type(type(optimizer).__name__, (type(optimizer),), body)
    wrapped = cls(
        optimizer.param_groups,
        named_parameters,
        CountedCompression(_stock_compression(compression)),
        backward_passes_per_step,
        op,
        gradient_predivide_factor,
        None,
        sparse_as_dense,
        process_set,
    )
    if process_set.included():
        _attach(wrapped, compression, overlap, replica_check_steps)
    if state is not None:
        wrapped.load_state_dict(state)
    return wrapped


def DistributedQODA(
    params: Any,
    named_parameters: Any = None,
    lr: float = 1.0,
    variant: str = "coupled",
    *,
    compression: Any = LayerwiseCompressor,
    qoda: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """QODA over all ranks: one optimizer that owns every player of a min-max problem.

    Args:
        params: parameters or groups, as for any torch optimizer; one group a player lets each have
            its own ``lr``.
        lr, variant: see :class:`horovod_qoda.qoda.QODA`; further arguments of it in ``qoda``.
        **options: of :func:`DistributedOptimizer`.
    """
    optimizer = QODA(params, lr=lr, variant=variant, **(qoda or {}))
    return DistributedOptimizer(optimizer, named_parameters, compression, **options)


def _stock_compression(compression: Any) -> Any:
    """What stock code may call: layer-wise payloads never pass through it."""
    return Compression.none if _layerwise_settings(compression) is not None else compression


def _layerwise_settings(compression: Any) -> Any:
    """Settings of a layer-wise compressor (class or instance), or ``None`` for any other."""
    kind = compression if isinstance(compression, type) else type(compression)
    if not issubclass(kind, LayerwiseCompressor) or issubclass(kind, SimulatedCompressor):
        return None
    return (compression() if isinstance(compression, type) else compression).settings


def _attach(self: Any, compression: Any, overlap: bool | str, replica_check_steps: int) -> None:
    """Gives a wrapped optimizer its carrier and registers the hooks."""
    parameters = [p for g in self.param_groups for p in g["params"] if p.requires_grad]
    names = [self._parameter_names[p] for p in parameters]
    transport = HorovodTransport(self.process_set)
    number = next(_numbers)
    wants_sums = hasattr(self, "receive_sums")
    settings = _layerwise_settings(compression)
    carrier: Carrier
    if settings is not None:
        carrier = LayerwiseCarrier(
            names,
            parameters,
            settings,
            transport,
            number,
            op=self.op,
            wants_sums=wants_sums,
            sparse_as_dense=self.sparse_as_dense,
        )
    else:
        carrier = StockCarrier(
            parameters,
            lambda p: _stock["_allreduce_grad_async"](self, p),
            self._compression,
            transport,
            number,
            wants_sums,
        )
    self._gradients = Gradients(names, parameters, carrier, transport, overlap, replica_check_steps)
    _register(self)


def _register(self: Any) -> None:
    """Registers a hook behind the gradient accumulation of every parameter, at any size."""
    for p in self._gradients.parameters:
        self._requires_update.add(p)
        accumulator = p.expand_as(p).grad_fn.next_functions[0][0]
        accumulator.register_hook(self._make_hook(p))
        self._grad_accs.append(accumulator)


def _register_hooks(self: Any) -> None:
    """Stock calls this before there is a carrier, and not at size 1: :func:`_attach` does it."""


def _make_hook(self: Any, p: torch.Tensor) -> Callable[..., None]:
    def hook(*ignored: Any) -> None:
        self._gradients.fired(p, self.backward_passes_per_step)

    return hook


def _allreduce_grad_async(self: Any, p: torch.Tensor) -> Result:
    """Called by stock ``synchronize()`` for every parameter."""
    carrier = self._gradients.carrier
    assert p.grad is not None
    if isinstance(carrier, LayerwiseCarrier) and p.grad.is_sparse and not self.sparse_as_dense:
        return _stock["_sparse_allreduce_grad_async"](self, p, self._parameter_names[p])
    return self._gradients.result(p)


def synchronize(self: Any) -> None:
    """Averages the gradients of all ranks into ``p.grad``; returns when all are there."""
    gradients: Gradients | None = getattr(self, "_gradients", None)
    if gradients is None:
        _stock["synchronize"](self)
        return
    gradients.begin(self.backward_passes_per_step)
    _stock["synchronize"](self)
    sums = gradients.end()
    if gradients.carrier.wants_sums:
        self.receive_sums(sums.sum_sq, sums.sum_sq_diff, sums.aux)


def step(self: Any, closure: Any = None) -> Any:
    """Synchronizes, unless told to skip it, and takes the optimizer's step."""
    loss = _stock["step"](self, closure)
    gradients: Gradients | None = getattr(self, "_gradients", None)
    if gradients is not None:
        gradients.after_step()
        if gradients.carrier.wants_sums and isinstance(gradients.carrier, LayerwiseCarrier):
            gradients.carrier.exchange.aux = self.last_move_sq()
    return loss


def zero_grad(self: Any, set_to_none: bool = True) -> None:
    """Clears gradients; raises OverlapError where some have been sent but not yet used."""
    gradients: Gradients | None = getattr(self, "_gradients", None)
    if gradients is not None:
        gradients.zeroed()
    super(self.__class__, self).zero_grad(set_to_none)


def add_listener(self: Any, listener: Callable[[ExchangeRecord], None]) -> None:
    """Calls ``listener`` with the record of every exchange, in the training thread."""
    if getattr(self, "_gradients", None) is not None:
        self._gradients.listeners.append(listener)


def no_sync(self: Any) -> Any:
    """Context manager in which backward only accumulates, on this rank alone."""
    return self._gradients.pause()


def state_dict(self: Any) -> dict[str, Any]:
    """The optimizer's state and, under ``"horovod_qoda"``, what compression has adapted.

    The same on all ranks; one rank's is enough for a checkpoint.
    """
    state = super(self.__class__, self).state_dict()
    exchange = _exchange_of(self)
    if exchange is not None:
        state[STATE_KEY] = exchange.state_dict()
    return state


def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
    """Loads what :func:`state_dict` returned, also of an optimizer that was never wrapped."""
    state = {key: value for key, value in state_dict.items() if key != STATE_KEY}
    _stock["load_state_dict"](self, state)
    exchange = _exchange_of(self)
    if exchange is not None and STATE_KEY in state_dict:
        exchange.load_state_dict(state_dict[STATE_KEY])


def local_state_dict(self: Any) -> dict[str, Any]:
    """What differs between ranks: this rank's previous decoded vector. One file a rank."""
    exchange = _exchange_of(self)
    return {} if exchange is None else exchange.local_state_dict()


def load_local_state_dict(self: Any, state: dict[str, Any]) -> None:
    """Loads what :func:`local_state_dict` returned on this rank."""
    exchange = _exchange_of(self)
    if exchange is not None:
        exchange.load_local_state_dict(state)


def _exchange_of(self: Any) -> Any:
    gradients: Gradients | None = getattr(self, "_gradients", None)
    carrier = None if gradients is None else gradients.carrier
    return carrier.exchange if isinstance(carrier, LayerwiseCarrier) else None


_replacements = {
    f.__name__: f
    for f in (
        _register_hooks,
        _make_hook,
        _allreduce_grad_async,
        synchronize,
        step,
        zero_grad,
        add_listener,
        no_sync,
        state_dict,
        load_state_dict,
        local_state_dict,
        load_local_state_dict,
    )
}
