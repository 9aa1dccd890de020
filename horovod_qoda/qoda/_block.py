"""The vector arithmetic of one QODA step on a list of parameters of one kind.

A block is parameters of one group, device and dtype that all have a gradient or all have none, so
that each operation is one ``torch._foreach_*`` call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from horovod_qoda.qoda._eager import Group, by_kind, dense_grad, work_dtype

Projection = Callable[[list[Tensor], list[Tensor]], None]


# Coordinates per partial sum on CPU. One float32 sum over a tensor of 20 million is off by 1e-3 and
# a float64 one takes 25 times as long; partial sums of this length are good to 1e-8, do not depend
# on the thread count, and their difference stays in cache.
CHUNK = 32768


def squared_norm(tensors: list[Tensor]) -> float:
    """Σ ‖·‖² over the list."""
    if not tensors:
        return 0.0
    if tensors[0].device.type == "cpu":
        parts = [torch.dot(part, part) for tensor in tensors for part in _chunks(tensor)]
        return float(torch.stack(parts).double().sum())
    norms = torch._foreach_norm(tensors)
    return float(torch.stack(list(norms)).double().square().sum())


def squared_distance(left: list[Tensor], right: list[Tensor]) -> float:
    """Σ ‖left − right‖² over the lists."""
    if left and left[0].device.type == "cpu":
        return sum(
            squared_norm([a - b for a, b in zip(_chunks(x), _chunks(y), strict=True)])
            for x, y in zip(left, right, strict=True)
        )
    return squared_norm(list(torch._foreach_sub(left, right)))


def add_scaled(left: list[Tensor], right: list[Tensor], scale: float, out: list[Tensor]) -> None:
    """out = left + scale · right; on CPU in one pass over memory instead of two."""
    if left[0].device.type == "cpu":
        for a, b, into in zip(left, right, out, strict=True):
            torch.add(a, b, alpha=scale, out=into)
    else:
        torch._foreach_copy_(out, left)
        torch._foreach_add_(out, right, alpha=scale)


def _chunks(tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.reshape(-1).split(CHUNK)


@dataclass
class Block:
    """Parameters, their gradients and their state, as parallel lists.

    Attributes:
        params: the model's tensors, holding X_{t+1/2}.
        grads: V̄_{t+1/2} in the work dtype; None where these parameters have no gradient (V̄ = 0).
        initial, dual, previous, average: state (``previous`` and ``average`` may be empty lists).
        lr: the group's lr, negated where the group maximises.
    """

    params: list[Tensor]
    grads: list[Tensor] | None
    initial: list[Tensor]
    dual: list[Tensor]
    previous: list[Tensor]
    average: list[Tensor]
    lr: float

    def squared_difference(self) -> float:
        """‖V̄_{t+1/2} − V̄_{t−1/2}‖² of these parameters."""
        if self.grads is None:
            return squared_norm(self.previous)
        return squared_distance(self.grads, self.previous)

    def average_in(self, t: int) -> None:
        """average <- average + (X_{t+1/2} − average)/t, the running mean."""
        if self.average:
            points = [p.to(a.dtype) for p, a in zip(self.params, self.average, strict=True)]
            torch._foreach_lerp_(self.average, points, 1.0 / t)

    def accumulate(self) -> None:
        """Y <- Y − lr V̄, and keeps V̄ for the next difference."""
        if self.grads is not None:
            torch._foreach_add_(self.dual, self.grads, alpha=-self.lr)
        if self.previous:
            if self.grads is None:
                torch._foreach_zero_(self.previous)
            else:
                torch._foreach_copy_(self.previous, self.grads)

    def base(
        self, eta: float, project_: Projection, out: list[Tensor] | None = None
    ) -> list[Tensor]:
        """Π(X_1 + ηY), in `out` or in new tensors."""
        if out is None:
            out = [torch.empty_like(x) for x in self.initial]
        add_scaled(self.initial, self.dual, eta, out)
        project_(self.params, out)
        return out

    def own_points(self) -> list[Tensor] | None:
        """The parameters as memory for X, where their dtype is the state's; else None."""
        same = all(work_dtype(param) == param.dtype for param in self.params)
        return self.params if same else None

    def lead(self, base: list[Tensor], gamma: float, project_: Projection) -> None:
        """Parameters <- Π(base − lr γ V̄); overwrites `base`."""
        if self.grads is not None:
            torch._foreach_add_(base, self.grads, alpha=-self.lr * gamma)
            project_(self.params, base)
        if base is not self.params:
            torch._foreach_copy_(self.params, base)


def blocks_of(state: dict[Tensor, dict[str, Any]], group: Group) -> Iterator[Block]:
    """The blocks of one group, in the order of its parameters.

    Raises:
        RuntimeError: a gradient is sparse.
    """
    with_grad = [param for param in group["params"] if dense_grad(param) is not None]
    without = [param for param in group["params"] if param.grad is None]
    for params in [*by_kind(with_grad), *by_kind(without)]:
        states = [state[param] for param in params]
        grads = [param.grad.to(work_dtype(param)) for param in params if param.grad is not None]
        yield Block(
            params=params,
            grads=grads or None,
            initial=[s["initial"] for s in states],
            dual=[s["dual"] for s in states],
            previous=[s["previous"] for s in states if "previous" in s],
            average=[s["average"] for s in states if "average" in s],
            lr=-group["lr"] if group["maximize"] else group["lr"],
        )
