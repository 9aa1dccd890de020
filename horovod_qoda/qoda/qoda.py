"""QODA: quantized optimistic dual averaging (arXiv 2505.14371; docs/theory.md §6).

With X_1 the starting point, Y_1 = 0, V̄_{1/2} = 0, iteration t = 1, 2, … is

    1. X_{t+1/2} = X_t − lr γ_t V̄_{t−1/2}       the last mean vector again, nothing is sent
    2. V̄_{t+1/2} = mean over nodes of V̂_{k,t+1/2}, gradients at X_{t+1/2}: the one exchange
    3. Y_{t+1}   = Y_t − lr V̄_{t+1/2}
    4. X_{t+1}   = X_1 + η_{t+1} Y_{t+1}

Between steps the model holds X_{t+1/2}, so that an ordinary backward pass takes gradients there;
``step()`` does 3 and 4, then 1 of the next iteration.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from horovod_qoda.qoda._block import Block, blocks_of, squared_distance, squared_norm
from horovod_qoda.qoda._eager import Closure, EagerOptimizer, Group, check_number, work_dtype

VARIANTS = ("coupled", "separated")

# Settings that steer sums over all parameters, and so must be the same in every group.
GLOBAL_SETTINGS = ("variant", "q_hat", "ergodic")

# Where every run starts. They live in param_groups[0] as Python numbers: Horovod broadcasts those
# by pickle, exactly, and a state_dict carries them without rounding.
SUMS_AT_START: dict[str, float] = {
    "t": 0,  # steps taken
    "sum_sq_diff": 0.0,  # coupled: Σ_{s≤t} Σ_k ‖V̂_{k,s+1/2} − V̂_{k,s−1/2}‖²/K²
    "sum_sq": 0.0,  # separated: Σ_{s<t} Σ_k ‖V̂_{k,s+1/2}‖²/K²
    "sum_move_sq": 0.0,  # separated: Σ_{s<t} ‖X_s − X_{s+1}‖²
    "last_sq": 0.0,  # separated: the term s = t of sum_sq, which waits for its turn
    "last_move_sq": 0.0,  # separated: the term s = t of sum_move_sq
}


def learning_rates(group: Group) -> tuple[float, float]:
    """(γ_{t+1}, η_{t+1}) from the sums of ``param_groups[0]`` after t steps (docs/theory.md §6).

    coupled:   γ = η = (1 + sum_sq_diff)^{−1/2}
    separated: γ = (1 + sum_sq)^{q̂−1/2},  η = (1 + sum_sq + sum_move_sq)^{−1/2}
    """
    if group["variant"] == "coupled":
        rate = (1.0 + group["sum_sq_diff"]) ** -0.5
        return rate, rate
    gamma = (1.0 + group["sum_sq"]) ** (group["q_hat"] - 0.5)
    eta = (1.0 + group["sum_sq"] + group["sum_move_sq"]) ** -0.5
    return gamma, eta


class QODA(EagerOptimizer):
    r"""Optimistic dual averaging with adaptive rates, for min-max problems and monotone operators.

    One instance owns all players (one group each, if their `lr` differ), since the adaptive rates
    sum over all coordinates. All players minimise; `maximize=True` turns a group's sign.

    ===========  ==========================================================================
    variant      rates, ‖·‖² summed over nodes and divided by K²
    ===========  ==========================================================================
    coupled      γ_t = η_t = (1 + Σ_{s<t} ‖V̂_{s+1/2} − V̂_{s−1/2}‖²)^{−1/2}
    separated    γ_t = (1 + Σ_{s≤t−2} ‖V̂_{s+1/2}‖²)^{q̂−1/2},
                 η_t = (1 + Σ_{s≤t−2} (‖V̂_{s+1/2}‖² + ‖X_s − X_{s+1}‖²))^{−1/2}
    ===========  ==========================================================================

    Args:
        params: parameters, or groups of them; real floating point, dense.
        lr: factor on every vector, ≥ 0. 1.0, because the adaptive rates do the scaling and the
            theory has no other factor. It stands inside the sum Y, so schedulers and per-group
            values act on the steps they are set for and leave earlier ones alone.
        variant: "coupled" by default: "separated" lags two steps behind, so its first steps are not
            normalised at all and a deep network may be non-finite after a few.
        q_hat: exponent of "separated", in (0, 1/4]. 1/4 is the end of the interval the theory
            allows, with the smallest extrapolation steps.
        ergodic: keep the mean of X_{t+1/2} for :meth:`average`. True, because the theory's
            guarantee holds for that mean (the last iterate of a GAN may cycle); False saves one
            copy of the parameters.
        maximize: ascend instead of descend; per group.

    A parameter without gradient counts as V̄ = 0: its Y stays, and its X_{t+1} = X_1 + η_{t+1} Y is
    still re-evaluated. State per parameter, float32 for float16 and bfloat16 parameters and their
    own dtype otherwise: ``initial`` X_1, ``dual`` Y, ``previous`` V̄ of the last step (coupled),
    ``average`` (ergodic). The position is X_1 + ηY: weights written into the model after the first
    step, such as by weight clipping, last until the next step only. X_1 is taken at the first step,
    so weights may be loaded or broadcast after construction.

    To restrict X to a convex set override :meth:`project_`.

    Raises:
        ValueError: a setting is out of range, or groups differ in `variant`, `q_hat`, `ergodic`.

    Example:
        >>> x, y = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
        >>> optimizer = QODA([{"params": [x]}, {"params": [y], "maximize": True}])
        >>> for _ in range(1000):
        ...     optimizer.zero_grad()
        ...     (x * y).sum().backward()
        ...     optimizer.step()
        >>> with optimizer.average():
        ...     print(f"{abs(x.item()) < 0.01} {abs(y.item()) < 0.01}")
        True True
    """

    # Class level, because unpickled and deep-copied optimizers do not run __init__.
    _received: tuple[float, float, float | None] | None = None
    _averaging: bool = False
    _rebuilt_after: int = 0

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        variant: str = "coupled",
        q_hat: float = 0.25,
        ergodic: bool = True,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "variant": variant,
            "q_hat": q_hat,
            "ergodic": ergodic,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: Group) -> None:
        check_number("lr", group["lr"], 0.0, math.inf)
        if group["variant"] not in VARIANTS:
            raise ValueError(f"variant must be one of {VARIANTS}, got {group['variant']!r}")
        check_number("q_hat", group["q_hat"], 0.0, 0.25, open_low=True)
        for name in GLOBAL_SETTINGS:
            first = self.param_groups[0][name]
            if group[name] != first:
                raise ValueError(
                    f"{name} must be the same in all groups, because the rates come from sums over "
                    f"all of them: got {group[name]!r} after {first!r}"
                )

    def add_param_group(self, param_group: Group) -> None:
        """Adds parameters, also after steps: they count as having rested at their present value."""
        super().add_param_group(param_group)
        if len(self.param_groups) == 1:
            head = self.param_groups[0]
            self._rebuilt_after = head.get("t", 0)
            for name, start in SUMS_AT_START.items():
                head.setdefault(name, start)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._rebuilt_after = 0

    def _start_anew(self) -> None:
        """Sums without the X_1 and Y that belong to them would be a silent mistake."""
        warnings.warn(
            f"QODA was built from param_groups of an optimizer that had taken {self._rebuilt_after}"
            " steps, and its state was not loaded: it starts anew from where the parameters are",
            stacklevel=3,
        )
        self.param_groups[0].update(SUMS_AT_START)
        self._rebuilt_after = 0

    def _new_state(self, param: Tensor, group: Group) -> dict[str, Any]:
        value = param.detach().to(dtype=work_dtype(param), copy=True)
        state = {"initial": value, "dual": torch.zeros_like(value)}
        if group["variant"] == "coupled":
            state["previous"] = torch.zeros_like(value)
        if group["ergodic"]:
            state["average"] = value.clone()
        return state

    def project_(self, params: list[Tensor], points: list[Tensor]) -> None:
        """Moves `points` in place onto the feasible set; by default that is the whole space.

        Called on X_{t+1} = Π(X_1 + η_{t+1} Y_{t+1}) and on X_{t+3/2} = Π(X_{t+1} − lr γ V̄).

        Args:
            params: which parameters these are.
            points: one tensor for each, of its shape, in the state's dtype.
        """

    def receive_sums(self, sum_sq: float, sum_sq_diff: float, move_sq: float | None = None) -> None:
        """Hands in the sums over nodes that steer the next ``step()``; it uses them once.

        The distributed wrapper calls this with values that are the same on all ranks, so that
        replicas stay identical. Without it, ``step()`` takes the sums of its own gradient, K = 1.
        They must belong to the gradients as ``step()`` sees them: a loss scale has to be taken out
        before the exchange, not between exchange and step.

        Args:
            sum_sq: Σ_k ‖V̂_k‖²/K² over all parameters of all groups.
            sum_sq_diff: Σ_k ‖V̂_k − V̂_k,previous‖²/K², likewise.
            move_sq: rank 0's :meth:`last_move_sq` from before this exchange; None: own value.

        Raises:
            ValueError: a value is negative. Non-finite ones are reported by ``step()``.
        """
        for name, value in (
            ("sum_sq", sum_sq),
            ("sum_sq_diff", sum_sq_diff),
            ("move_sq", move_sq or 0.0),
        ):
            if value < 0.0:
                raise ValueError(f"{name} is a sum of squares, got {value}")
        self._received = (sum_sq, sum_sq_diff, move_sq)

    def last_move_sq(self) -> float:
        """‖X_t − X_{t+1}‖² of the last step; 0.0 for "coupled", which has no use for it.

        Rank 0's value travels in the next payload: the rates lag two steps, which allows it.
        """
        return float(self.param_groups[0]["last_move_sq"])

    def rates(self) -> tuple[float, float]:
        """(γ, η) that made the model's present position; (1.0, 1.0) before the first step."""
        return learning_rates(self.param_groups[0])

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """One iteration: takes V̄_{t+1/2} = ``p.grad`` and leaves the model at X_{t+3/2}.

        Args:
            closure: re-evaluates the loss at X_{t+1/2} and returns it.

        Raises:
            FloatingPointError: the sums of squares are not finite. Nothing has been changed, so the
                caller may drop this gradient and go on; used, it would stop every layer for good.
            RuntimeError: a gradient is sparse, or the model holds the average.
        """
        if self._averaging:
            raise RuntimeError("QODA.step() inside average(): the model does not hold X_{t+1/2}")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._rebuilt_after:
            self._start_anew()
        sums, self._received = self._received, None
        blocks = [block for group in self.param_groups for block in blocks_of(self.state, group)]
        if sums is None:
            sums = self._own_sums(blocks)
        sum_sq, sum_sq_diff, move_sq = sums
        if move_sq is None:
            move_sq = self.last_move_sq()
        if not math.isfinite(sum_sq + sum_sq_diff + move_sq):
            raise FloatingPointError(
                f"QODA step {self.param_groups[0]['t'] + 1}: sums of squares are not finite "
                f"(gradients {sum_sq}, differences {sum_sq_diff}, moves {move_sq}). Look for the "
                "layer with NaN or Inf; leave this step out to go on without it"
            )
        self._advance(blocks, sum_sq, sum_sq_diff, move_sq)
        return loss

    def _own_sums(self, blocks: list[Block]) -> tuple[float, float, float | None]:
        if self.param_groups[0]["variant"] == "coupled":
            return 0.0, sum(block.squared_difference() for block in blocks), None
        return sum(squared_norm(block.grads or []) for block in blocks), 0.0, None

    def _advance(
        self, blocks: list[Block], sum_sq: float, sum_sq_diff: float, move_sq: float
    ) -> None:
        head = self.param_groups[0]
        separated = head["variant"] == "separated"
        if head["t"] == 0:
            for block in blocks:
                torch._foreach_copy_(block.initial, block.params)
        eta_before = learning_rates(head)[1]
        head["t"] += 1
        if separated:
            head["sum_sq"] += head["last_sq"]
            head["sum_move_sq"] += move_sq
            head["last_sq"] = sum_sq
        else:
            head["sum_sq_diff"] += sum_sq_diff
        gamma, eta = learning_rates(head)

        moved = 0.0
        for block in blocks:
            block.average_in(head["t"])
            before = block.base(eta_before, self.project_) if separated else []
            block.accumulate()
            base = block.base(eta, self.project_, out=block.own_points())
            if separated:
                moved += squared_distance(before, base)
            block.lead(base, gamma, self.project_)
        head["last_move_sq"] = moved

    @contextmanager
    def average(self) -> Iterator[None]:
        """Swaps the mean of all X_{t+1/2} so far into the model, and puts X_{t+1/2} back after.

        The mean is uniform, (1/T) Σ X_{t+1/2}. Before the first step the model stays as it is.
        Needs one more copy of the parameters while it lasts.

        Raises:
            RuntimeError: built with ``ergodic=False``, or already inside.
        """
        head = self.param_groups[0]
        if not head["ergodic"]:
            raise RuntimeError("QODA.average() needs QODA(..., ergodic=True)")
        if self._averaging:
            raise RuntimeError("QODA.average() inside average()")
        params = [param for group in self.param_groups for param in group["params"]]
        saved = [param.detach().clone() for param in params]
        self._averaging = True
        try:
            if head["t"]:
                self._write(params, [self.state[param]["average"] for param in params])
            yield
        finally:
            self._write(params, saved)
            self._averaging = False

    @staticmethod
    @torch.no_grad()
    def _write(params: list[Tensor], values: list[Tensor]) -> None:
        for param, value in zip(params, values, strict=True):
            param.copy_(value)
