"""The gradients of one optimizer, from hook to mean: when they are sent and what is checked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from horovod_qoda.exchange import ExchangeRecord, MismatchError, Sums, agree_on_parameters
from horovod_qoda.logs import logger
from horovod_qoda.torch.carriers import Carrier, LayerwiseCarrier, Result
from horovod_qoda.torch.overlap import OverlapError, OverlapRule
from horovod_qoda.torch.replicas import hash_parameters
from horovod_qoda.torch.summary import summarize
from horovod_qoda.transport import Transport

Listener = Callable[[ExchangeRecord], None]


class Gradients:
    """Sends each gradient once: at its hook where that is safe, else at ``synchronize()``.

    Args:
        names, parameters: layers in registration order, the same on all ranks.
        carrier: moves the gradients.
        overlap: see :class:`OverlapRule`.
        replica_check_steps: compare the parameters of all ranks every so many steps; 0 is never.
    """

    def __init__(
        self,
        names: list[str],
        parameters: list[torch.Tensor],
        carrier: Carrier,
        transport: Transport,
        overlap: bool | str,
        replica_check_steps: int,
    ) -> None:
        self.names, self.parameters, self.carrier = names, parameters, carrier
        self.transport = transport
        self.rule = OverlapRule(overlap, names)
        self.listeners: list[Listener] = []
        self.paused = False
        self._interrupted = False
        self._layer = {id(p): i for i, p in enumerate(parameters)}
        self._check_every = replica_check_steps
        self._steps = 0

    def fired(self, p: torch.Tensor, passes: int) -> None:
        """Called by the hook of a parameter, after its gradient was accumulated."""
        # requires_grad turned off after the forward pass: the hook fires, nothing is accumulated.
        if self.paused or not p.requires_grad or p.grad is None:
            return
        layer = self._layer[id(p)]
        if self.rule.fired(layer, p.grad, passes, self.carrier.agreed):
            self.carrier.put(layer, p)

    def begin(self, passes: int) -> None:
        """Start of ``synchronize()``: checks what was sent, sends the rest.

        Raises:
            RuntimeError: Ctrl-C has ended an earlier exchange on this rank.
        """
        if self._interrupted:
            raise RuntimeError(
                f"rank {self.transport.rank} was interrupted (Ctrl-C) inside "
                "optimizer.synchronize(): the other ranks may have taken that step, this one has "
                "not, so its parameters are no longer theirs; restart the job from its last "
                "checkpoint"
            )
        self.rule.check([p.grad for p in self.parameters], passes, self.carrier.in_place)
        if self._steps == 0:
            self._first()
        self.carrier.agree()
        for layer, p in enumerate(self.parameters):
            if p.grad is None:
                p.grad = self.carrier.no_gradient(layer, p)
            if not self.rule.sent(layer):
                self.carrier.put(layer, p)

    def result(self, p: torch.Tensor) -> Result:
        return self.carrier.result(self._layer[id(p)], p)

    def end(self) -> Sums:
        """End of ``synchronize()``: all means are in ``p.grad``."""
        record, sums = self.carrier.finish()
        for listener in self.listeners:
            listener(record)
        if self._steps == 0 and self.transport.rank == 0:
            summarize(self.carrier, record, self.transport.size)
        if self.rule.end_step(self.transport, self.carrier.name) and self.transport.rank == 0:
            logger().info(
                "gradients are sent during backward"
                if self.rule.on
                else f"gradients are sent at synchronize(), not during backward: {self.rule.reason}"
            )
        self._steps += 1
        return sums

    def under_way(self) -> list[str]:
        """Names of the layers whose gradients have left during this step's backward."""
        return [name for i, name in enumerate(self.names) if self.rule.sent(i)]

    def abandon(self, interrupted: bool = False) -> None:
        """After an error in the middle of a step: the next one starts from nothing.

        ``interrupted``: on this rank alone, at any place, so there is no next one among several.
        """
        self._interrupted |= interrupted and self.transport.size > 1
        self.rule.forget()
        self.carrier.abandon()

    def refuse_unknown(self, groups: list[dict[str, Any]], names: dict[torch.Tensor, str]) -> None:
        """Raises RuntimeError for a gradient that no rank would exchange."""
        for p in (p for group in groups for p in group["params"]):
            if p.requires_grad and p.grad is not None and id(p) not in self._layer:
                raise RuntimeError(
                    f"{names.get(p, 'a parameter')!r} was frozen when DistributedOptimizer was "
                    "made, so its gradient would stay local: unfreeze it before wrapping, or wrap "
                    "a new optimizer"
                )

    def after_step(self, groups: list[dict[str, Any]], names: dict[torch.Tensor, str]) -> None:
        """After the parameters were updated: compares replicas where it is time."""
        if self._check_every and self._steps and self._steps % self._check_every == 0:
            everything = [p for group in groups for p in group["params"]]
            self._compare(
                [names[p] for p in everything],
                everything,
                "the replicas have drifted apart: do all ranks run one torch build on one kind of "
                "processor, and does the script change parameters outside optimizer.step()?",
            )

    def zeroed(self) -> None:
        """``zero_grad()`` was called.

        Raises:
            OverlapError: gradients that were sent would be thrown away.
        """
        if sent := self.under_way():
            raise OverlapError(
                f"zero_grad() after backward() but before step(): the gradient of {sent[0]!r} has "
                "been sent already; call step() or synchronize() first, or pass overlap=False to "
                "DistributedOptimizer"
            )
        self.rule.forget_step()

    @contextmanager
    def pause(self) -> Any:
        """While it lasts hooks only accumulate."""
        self.paused, before = True, self.paused
        try:
            yield
        finally:
            self.paused = before

    def _first(self) -> None:
        sparse = np.array([p.grad is not None and p.grad.is_sparse for p in self.parameters])
        self.carrier.settle(sparse)
        if isinstance(self.carrier, LayerwiseCarrier):
            try:
                self._compare(
                    self.names,
                    self.parameters,
                    "call hvd.broadcast_parameters(model.state_dict(), root_rank=0) first",
                )
            except MismatchError as e:
                # Stock Horovod does not look, and scripts exist that broadcast later.
                if self.transport.rank == 0:
                    logger().warning(f"REPLICAS DIFFER AT THE FIRST STEP: {e}")

    def _compare(self, names: list[str], parameters: list[torch.Tensor], remedy: str) -> None:
        hashes = hash_parameters(parameters)
        agree_on_parameters(self.transport, self.carrier.name, names, hashes, remedy)
