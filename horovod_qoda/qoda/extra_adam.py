"""ExtraAdam: extrapolation with Adam's direction, two gradients a step (arXiv 1802.10551)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from horovod_qoda.qoda._adam import AdamBase, add_to, run_closure
from horovod_qoda.qoda._eager import Closure, Group, by_kind


class ExtraAdam(AdamBase):
    """p_{t+1/2} = p_t − lr·u_t, then p_{t+1} = p_t − lr·u_{t+1/2}, with u Adam's direction.

    Both gradients enter the moments. The baseline with two exchanges a step, which the optimistic
    methods do without:

    1. backward; :meth:`extrapolation` with the gradient at p_t;
    2. backward again; :meth:`step` with the gradient at p_{t+1/2}.

    Under a distributed wrapper, whose ``step()`` averages gradients, call ``synchronize()`` before
    :meth:`extrapolation`; leaving it out is an error.

    Args:
        params: parameters, or groups of them; real floating point, dense.
        lr: step size, ≥ 0. 1e-4, as for :class:`OptimisticAdam`.
        betas: decay of the two moments; (0.5, 0.9), for the reason given there.
        eps: added to the root of the second moment. 1e-8, Adam's.
        maximize: ascend instead of descend; per group.

    State per parameter, float32 for float16 and bfloat16 parameters and their own dtype otherwise:
    ``step`` (two a step), ``exp_avg``, ``exp_avg_sq``, ``base`` (p_t during extrapolation).

    Raises:
        ValueError: a setting is out of range.
    """

    _extra_state = ("base",)

    # Horovod's wrapper has an attribute of this name, false until gradients have been averaged. It
    # is reset in step() alone, so extrapolation() resets it for its own gradients.
    _synchronized = True

    def add_param_group(self, param_group: Group) -> None:
        """Adds a group and creates its state.

        Raises:
            RuntimeError: between the two halves of a step.
            ValueError: a setting is out of range.
        """
        if self.param_groups and self.param_groups[0]["extrapolated"]:
            raise RuntimeError("add_param_group() between extrapolation() and step()")
        super().add_param_group(param_group)
        self.param_groups[0]["extrapolated"] = False

    @torch.no_grad()
    def extrapolation(self) -> None:
        """Moves the parameters to p_{t+1/2} with the gradient at p_t.

        Raises:
            RuntimeError: called twice without ``step()`` in between; under a distributed wrapper
                called without ``synchronize()``; or a gradient is sparse.
        """
        head = self.param_groups[0]
        if head["extrapolated"]:
            raise RuntimeError("extrapolation() twice: take a gradient here and call step()")
        if not self._synchronized:
            raise RuntimeError("gradients are one rank's: synchronize() before extrapolation()")
        for params, bases in self._params_and_bases():
            torch._foreach_copy_(bases, params)
        for params, _, update in self._updates():
            add_to(params, list(torch._foreach_neg(update)))
        head["extrapolated"] = True
        if "_synchronized" in vars(self):
            self._synchronized = False

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Moves the parameters from p_t with the gradient at p_{t+1/2}.

        Args:
            closure: re-evaluates the loss at p_{t+1/2} and returns it.

        Raises:
            RuntimeError: ``extrapolation()`` was not called before, or a gradient is sparse.
        """
        head = self.param_groups[0]
        if not head["extrapolated"]:
            raise RuntimeError("step() needs extrapolation() with the first gradient before it")
        loss = run_closure(closure)
        updates = list(self._updates())
        for params, bases in self._params_and_bases():
            torch._foreach_copy_(params, bases)
        for params, _, update in updates:
            add_to(params, list(torch._foreach_neg(update)))
        head["extrapolated"] = False
        return loss

    def _params_and_bases(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        kinds = by_kind(param for group in self.param_groups for param in group["params"])
        return [(params, [self.state[param]["base"] for param in params]) for params in kinds]
