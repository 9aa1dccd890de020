"""OptimisticAdam: an optimistic correction of Adam's direction (arXiv 1711.00141)."""

from __future__ import annotations

from typing import Any

import torch

from horovod_qoda.qoda._adam import AdamBase, add_to, run_closure
from horovod_qoda.qoda._eager import Closure


class OptimisticAdam(AdamBase):
    """p <- p − 2·lr·u_t + lr·u_{t−1}, with u_t Adam's direction and u_0 = 0.

    The parameters hold a look-ahead: the base point moved on by the last direction. One exchange a
    step. For deep GANs this is the practical partner of QODA, whose rate is one scalar for all
    coordinates. Where `lr` changes, the old direction is taken back with the `lr` it came with.

    Args:
        params: parameters, or groups of them; real floating point, dense.
        lr: step size, ≥ 0. 1e-4, the value of the WGAN-GP literature (arXiv 1704.00028).
        betas: decay of the two moments. (0.5, 0.9) instead of Adam's (0.9, 0.999): the field of a
            game turns, so a long first moment points where the opponent was; the values of the
            optimistic and extrapolated Adam papers (arXiv 1711.00141, 1802.10551) for GANs.
        eps: added to the root of the second moment. 1e-8, Adam's.
        maximize: ascend instead of descend; per group.

    State per parameter, float32 for float16 and bfloat16 parameters and their own dtype otherwise:
    ``step``, ``exp_avg``, ``exp_avg_sq``, ``previous`` (lr·u_{t−1}). Parameters without gradient
    are left alone.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> p = torch.zeros(1, requires_grad=True)
        >>> optimizer = OptimisticAdam([p], lr=0.1)
        >>> for _ in range(2):
        ...     p.grad = torch.ones(1)
        ...     optimizer.step()
        >>> print(f"{p.item():.4f}")  # −0.2, then −0.2 + 0.1
        -0.3000
    """

    _extra_state = ("previous",)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One update from ``p.grad``.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = run_closure(closure)
        for params, states, update in self._updates():
            previous = [state["previous"] for state in states]
            torch._foreach_add_(previous, update, alpha=-2.0)
            add_to(params, previous)
            torch._foreach_copy_(previous, update)
        return loss
