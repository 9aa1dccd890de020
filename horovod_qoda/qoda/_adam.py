"""Adam's direction (arXiv 1412.6980), shared by OptimisticAdam and ExtraAdam."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from horovod_qoda.qoda._eager import (
    Closure,
    EagerOptimizer,
    Group,
    by_kind,
    check_number,
    dense_grad,
    work_dtype,
)


class AdamBase(EagerOptimizer):
    """Settings, state and direction of Adam; a subclass decides what to do with the direction."""

    # Names of the tensors a subclass keeps beside the two moments, zero at the start.
    _extra_state: tuple[str, ...] = ()

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.5, 0.9),
        eps: float = 1e-8,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize})

    def _check_group(self, group: Group) -> None:
        check_number("lr", group["lr"], 0.0, math.inf)
        check_number("eps", group["eps"], 0.0, math.inf)
        if len(group["betas"]) != 2 or not all(0.0 <= beta < 1.0 for beta in group["betas"]):
            raise ValueError(f"betas must be two numbers of [0, 1), got {group['betas']!r}")

    def _new_state(self, param: Tensor, group: Group) -> dict[str, Any]:
        zero = torch.zeros_like(param, dtype=work_dtype(param))
        names = ("exp_avg", "exp_avg_sq", *self._extra_state)
        return {"step": 0, **{name: zero.clone() for name in names}}

    def _updates(self) -> Iterator[tuple[list[Tensor], list[dict[str, Any]], list[Tensor]]]:
        """Takes the gradients into the moments; yields parameters, states and lr·u_t.

        u_t = m̂_t / (√v̂_t + eps). Parameters without gradient are left out, as in
        torch.optim.Adam. The updates have the state's dtype.

        Raises:
            RuntimeError: a gradient is sparse; raised before anything is changed.
        """
        chosen = [
            (group, [param for param in group["params"] if dense_grad(param) is not None])
            for group in self.param_groups
        ]
        for group, params in chosen:
            by_step: defaultdict[int, list[Tensor]] = defaultdict(list)
            for param in params:
                self.state[param]["step"] += 1
                by_step[self.state[param]["step"]].append(param)
            for step, same_step in by_step.items():
                for block in by_kind(same_step):
                    states = [self.state[param] for param in block]
                    yield block, states, _scaled_direction(block, states, group, step)


def _scaled_direction(
    params: list[Tensor], states: list[dict[str, Any]], group: Group, step: int
) -> list[Tensor]:
    beta1, beta2 = group["betas"]
    grads = [param.grad.to(work_dtype(param)) for param in params if param.grad is not None]
    means = [state["exp_avg"] for state in states]
    squares = [state["exp_avg_sq"] for state in states]
    torch._foreach_lerp_(means, grads, 1.0 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1.0 - beta2)

    scale = torch._foreach_sqrt(squares)
    torch._foreach_div_(scale, math.sqrt(1.0 - beta2**step))
    torch._foreach_add_(scale, group["eps"])
    lr = -group["lr"] if group["maximize"] else group["lr"]
    update = torch._foreach_div(means, scale)
    torch._foreach_mul_(update, lr / (1.0 - beta1**step))
    return list(update)


def run_closure(closure: Closure | None) -> Any:
    """The loss of `closure` with gradients enabled, or None."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def add_to(params: list[Tensor], changes: list[Tensor]) -> None:
    """params += changes, the sum taken in the dtype of `changes` and rounded once."""
    if params[0].dtype == changes[0].dtype:
        torch._foreach_add_(params, changes)
    else:
        torch._foreach_copy_(params, torch._foreach_add(changes, params))
