"""The functions that replace some of Horovod's in the class it builds around an optimizer."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import torch
from horovod.torch.optimizer import _DistributedOptimizer

from horovod_qoda.exchange import ExchangeRecord
from horovod_qoda.logs import logger
from horovod_qoda.torch.attach import LOAD_KEY, attach
from horovod_qoda.torch.carriers import LayerwiseCarrier, Result, sparse_mean
from horovod_qoda.torch.gradients import Gradients
from horovod_qoda.torch.loss_scaling import overflowed, refuse_tensors

STATE_KEY = "horovod_qoda"

stock = dict(_DistributedOptimizer.__dict__)


def _stock_allreduce(self: Any, p: torch.Tensor) -> Result:
    return stock["_allreduce_grad_async"](self, p)


def _register_hooks(self: Any) -> None:
    """Stock calls this before there is a carrier, and not at size 1: :func:`attach` does it."""


def _make_hook(self: Any, p: torch.Tensor) -> Callable[..., None]:
    # An optimizer that nobody holds any more must not react to its parameters' gradients.
    reference = weakref.ref(self)

    def hook(*ignored: Any) -> None:
        optimizer = reference()
        if optimizer is not None:
            _notice_load(optimizer)
            optimizer._gradients.fired(p, optimizer.backward_passes_per_step)

    return hook


def _notice_load(self: Any) -> None:
    if self.param_groups[0].get(LOAD_KEY, 0):
        self._gradients.carrier.disagree()


def _allreduce_grad_async(self: Any, p: torch.Tensor) -> Result:
    """Called by stock ``synchronize()`` for every parameter."""
    carrier = self._gradients.carrier
    assert p.grad is not None
    if isinstance(carrier, LayerwiseCarrier) and p.grad.is_sparse and not self.sparse_as_dense:
        carrier.count_sparse(p.grad)
        return self._sparse_allreduce_grad_async(p, self._parameter_names[p])
    return self._gradients.result(p)


def _sparse_allreduce_grad_async(self: Any, p: torch.Tensor, name: str) -> Result:
    assert p.grad is not None
    return sparse_mean(p.grad, name, self.op, self.process_set), None


def synchronize(self: Any) -> None:
    """Averages the gradients of all ranks into ``p.grad``; returns when all are there."""
    gradients = _gradients(self)
    if gradients is None:
        stock["synchronize"](self)
        return
    _notice_load(self)
    gradients.refuse_unknown(self.param_groups, self._parameter_names)
    try:
        gradients.begin(self.backward_passes_per_step)
        self.param_groups[0][LOAD_KEY] = 0  # on all ranks at once: they have agreed
        stock["synchronize"](self)
        sums = gradients.end()
    except BaseException as error:
        # Whoever catches it may go on: without what is left of this step.
        self._handles.clear()
        gradients.abandon(interrupted=not isinstance(error, Exception))
        raise
    if gradients.carrier.wants_sums:
        self.receive_sums(sums.sum_sq, sums.sum_sq_diff, sums.aux)


def step(self: Any, closure: Any = None, *, grad_scaler: Any = None) -> Any:
    """Synchronizes, unless told to skip it, and takes the optimizer's step.

    A closure is evaluated once, before the gradients it computes are exchanged.

    Args:
        grad_scaler: passed by ``scaler.step(optimizer)``; no step is taken, on no rank, where the
            gradients of any rank have overflowed.

    Raises:
        ValueError: a closure under ``skip_synchronize()``, whose gradients nobody would average;
            or with a scaler.
    """
    loss = None
    if grad_scaler is not None:
        if closure is not None:
            raise ValueError("scaler.step(optimizer, closure): GradScaler supports no closure")
        if overflowed(self, grad_scaler):
            return None
        with self.skip_synchronize():
            return step(self)
    refuse_tensors(self)
    if closure is not None:
        if not self._should_synchronize:
            raise ValueError(
                "step(closure) under skip_synchronize(): call step() without a closure"
            )
        with torch.enable_grad():
            loss = closure()
    result = stock["step"](self, None)
    gradients = _gradients(self)
    if gradients is not None:
        gradients.after_step(self.param_groups, self._parameter_names)
    return result if closure is None else loss


def zero_grad(self: Any, set_to_none: bool = True) -> None:
    """Clears gradients; raises OverlapError where some have been sent but not yet used."""
    gradients = _gradients(self)
    if gradients is not None:
        gradients.zeroed()
    super(self.__class__, self).zero_grad(set_to_none)


def add_param_group(self: Any, param_group: dict[str, Any]) -> None:
    """Adds parameters, on all ranks between two steps; the exchange starts anew with them.

    Parameters get the names ``group<i>.<j>``, unless the optimizer was given names for them.
    """
    super(self.__class__, self).add_param_group(param_group)
    if _gradients(self) is None:
        return
    place = len(self.param_groups) - 1
    for j, p in enumerate(self.param_groups[place]["params"]):
        self._parameter_names.setdefault(p, f"group{place}.{j}")
    logger().info("a parameter group was added: what compression had adapted starts anew")
    listeners = self._gradients.listeners
    attach(self, *self._options)
    self._gradients.listeners = listeners


def add_listener(self: Any, listener: Callable[[ExchangeRecord], None]) -> None:
    """Calls ``listener`` with the record of every exchange, in the training thread."""
    gradients = _gradients(self)
    if gradients is not None:
        gradients.listeners.append(listener)


def set_compression(self: Any, **changes: Any) -> None:
    """Changes compression settings during training, from the next exchange on.

    To be called on every rank between the same two steps. The next exchange starts with a
    handshake; what compression had adapted starts anew.

        optimizer.set_compression(bits=2.5, warmup_steps=0)

    Args:
        **changes: of :class:`horovod_qoda.settings.Settings`; those not named stay.

    Raises:
        TypeError, ValueError: a bad setting, or gradients that do not travel by the layer-wise
            exchange; nothing has changed then.
        RuntimeError: gradients of this step are under way.
        MismatchError: in the next step on all ranks, where settings differ between ranks.
    """
    gradients = _gradients(self)
    if gradients is None:
        return
    settings, *others = self._options
    carrier = gradients.carrier
    if settings is None or not isinstance(carrier, LayerwiseCarrier):
        raise ValueError(
            "set_compression() needs an optimizer made with compression=hvd.Compression.layerwise; "
            "to start uncompressed use layerwise(warmup_steps=...) or layerwise(rules={'*': 'raw'})"
        )
    unknown = sorted(set(changes) - set(settings.canonical()))
    if unknown:
        raise TypeError(f"set_compression(): unknown compression setting {unknown[0]!r}")
    if gradients.under_way():
        raise RuntimeError(
            "set_compression() between backward() and step(): gradients are under way already; "
            "call it after step()"
        )
    changed = dataclasses.replace(settings, **changes)
    carrier.change(changed)
    self._options = (changed, *others)


def no_sync(self: Any) -> Any:
    """Context manager in which backward only accumulates, on this rank alone."""
    gradients = _gradients(self)
    return contextlib.nullcontext() if gradients is None else gradients.pause()


def state_dict(self: Any) -> dict[str, Any]:
    """The optimizer's state and, under ``"horovod_qoda"``, what compression has adapted.

    The same on all ranks; one rank's is enough for a checkpoint.
    """
    state = super(self.__class__, self).state_dict()
    gradients = _gradients(self)
    if gradients is not None and (shared := gradients.carrier.state_dict()):
        state[STATE_KEY] = shared
    return state


def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
    """Loads what :func:`state_dict` returned, also of an optimizer that was never wrapped.

    On every rank, or on rank 0 and then ``hvd.broadcast_optimizer_state``.
    """
    state = {key: value for key, value in state_dict.items() if key != STATE_KEY}
    stock["load_state_dict"](self, state)
    gradients = _gradients(self)
    if gradients is not None:
        self.param_groups[0][LOAD_KEY] = 1
        gradients.carrier.load_state_dict(state_dict.get(STATE_KEY))


def local_state_dict(self: Any) -> dict[str, Any]:
    """What differs between ranks: this rank's previous vector, for QODA. One file a rank."""
    gradients = _gradients(self)
    return {} if gradients is None else gradients.carrier.local_state_dict()


def load_local_state_dict(self: Any, state: dict[str, Any]) -> None:
    """Loads what :func:`local_state_dict` returned on this rank, after :func:`load_state_dict`."""
    gradients = _gradients(self)
    if gradients is not None:
        gradients.carrier.load_local_state_dict(state)


def _gradients(self: Any) -> Gradients | None:
    """None while stock's constructor runs, and on ranks outside the process set."""
    return getattr(self, "_gradients", None)


replacements: dict[str, Any] = {
    f.__name__: f
    for f in (
        _stock_allreduce, _register_hooks, _make_hook, _allreduce_grad_async,
        _sparse_allreduce_grad_async, synchronize, step, zero_grad, add_param_group, add_listener,
        set_compression, no_sync, state_dict, load_state_dict, local_state_dict,
        load_local_state_dict,
    )
}  # fmt: skip
# torch's word for an optimizer that GradScaler calls on every rank, with itself as grad_scaler.
replacements["_step_supports_amp_scaling"] = True
