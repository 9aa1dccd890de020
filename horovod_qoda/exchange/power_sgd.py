"""PowerSGD for all low-rank layers of one optimizer: their buffers, their ranks, their state."""

from __future__ import annotations

from typing import Any

import numpy as np

from horovod_qoda.exchange.adaptation import is_allocation, precedes_allocation
from horovod_qoda.exchange.buffer import ExchangeBuffer
from horovod_qoda.exchange.low_rank import LowRank, low_rank, matrix
from horovod_qoda.exchange.low_rank_options import MOST, candidates, choose, tails
from horovod_qoda.exchange.observations import Arrays
from horovod_qoda.exchange.step import Step
from horovod_qoda.exchange.worker import Steps
from horovod_qoda.layout import Layout
from horovod_qoda.settings import Settings


class PowerSGD:
    """Empty, and of no effect, where no layer is to be approximated.

    Attributes:
        parts: PowerSGD's memory by index of the buffer; its layers are all low-rank ones.
        own: each layer's rank where nothing is allocated.
    """

    def __init__(self, layout: Layout, settings: Settings) -> None:
        self._layout, self._settings = layout, settings
        self.own = {
            x.index: layout.types[x.type].low_rank
            for x in layout.layers
            if layout.types[x.type].low_rank
        }
        self.parts = {
            plan.index: LowRank(
                plan,
                [matrix(i, layout.layers[i].name, layout.layers[i].shape) for i in plan.layers],
                self.own,
                settings.seed,
            )
            for plan in layout.buffers
            if self.own.keys() & set(plan.layers)
        }

    @property
    def ranks(self) -> dict[int, int]:
        """Ranks in force, by layer."""
        return {layer: r for part in self.parts.values() for layer, r in part.ranks.items()}

    def job(self, step: Step, buffer: ExchangeBuffer) -> Steps | None:
        """The job that exchanges a buffer; None where it is not one of ours."""
        part = self.parts.get(buffer.plan.index)
        return None if part is None else low_rank(step, buffer, part)

    def follow(self, buffers: list[ExchangeBuffer], exchange: int) -> None:
        """Adds this rank's gradients up over the exchanges before an allocation."""
        if self._settings.allocation == "none" or not precedes_allocation(exchange):
            return
        first = not precedes_allocation(exchange - 1)
        for index, part in self.parts.items():
            # One gradient that is not finite would spoil the sum; the others say enough.
            now = np.where(np.isfinite(buffers[index].values), buffers[index].values, np.float32(0))
            anew = first or part.summed is None
            part.summed = now if anew else part.summed + now

    def observe(self, exchange: int) -> Arrays:
        """What this rank contributes to an allocation, and then forgets: squared errors of each
        layer's candidates and its squared norm, [layers, 10]; nothing at other updates."""
        if self._settings.allocation == "none" or not is_allocation(exchange) or not self.parts:
            return {}
        errors = np.zeros((len(self._layout.layers), MOST + 1))
        for part in self.parts.values():
            for m in part.matrices:
                if part.summed is None:
                    continue
                gradient = part.view(m, part.summed)
                found = tails(gradient, candidates(m, self.own[m.layer]))
                errors[m.layer, : len(found)] = found
                errors[m.layer, MOST] = np.sum(gradient.astype(np.float64) ** 2)
            part.summed = None
        return {"low_rank": errors}

    def allocate(self, amounts: Arrays) -> None:
        """Chooses ranks from what all ranks observed."""
        if "low_rank" not in amounts:
            return
        errors = amounts["low_rank"]
        matrices = [m for part in self.parts.values() for m in part.matrices]
        offered = [len(candidates(m, self.own[m.layer])) for m in matrices]
        layers = [self._layout.layers[m.layer] for m in matrices]
        mine = [self._settings.for_layer(x.name, x.kind) for x in layers]
        self.set_ranks(
            choose(
                matrices,
                [self.own[m.layer] for m in matrices],
                [errors[m.layer, :n] for m, n in zip(matrices, offered, strict=True)],
                [float(errors[m.layer, MOST]) / (m.rows * m.columns) for m in matrices],
                kind=self._settings.allocation_error,
                weights=[1.0 if s is None else s.sensitivity for s in mine],
                alpha=self._settings.allocation_alpha,
            )
        )

    def set_ranks(self, ranks: dict[int, int]) -> None:
        for part in self.parts.values():
            part.set_ranks({m.layer: ranks[m.layer] for m in part.matrices})

    def state_dict(self) -> dict[str, int]:
        """Rank of each layer by its index, equal on all ranks of the job."""
        return {str(layer): rank for layer, rank in sorted(self.ranks.items())}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises ValueError where the layers are others."""
        ranks = {int(layer): rank for layer, rank in state.items()}
        if ranks.keys() != self.own.keys():
            raise ValueError(
                "the checkpoint's PowerSGD state is of another model or other settings: it has "
                f"{len(ranks)} low-rank layers, here there are {len(self.own)}"
            )
        self.set_ranks(ranks)

    def local_state(self) -> dict[str, Any]:
        """Residuals and warm starts of this rank, as torch tensors."""
        import torch

        return {
            f"low_rank.{index}.{name}": torch.from_numpy(array.copy())
            for index, part in self.parts.items()
            for name, array in part.state().items()
        }

    def load_local_state(self, vectors: dict[str, Any]) -> None:
        """Takes :meth:`local_state` back; what is not there starts anew."""
        for index, part in self.parts.items():
            prefix = f"low_rank.{index}."
            saved = {
                key.removeprefix(prefix): vector.numpy()
                for key, vector in vectors.items()
                if key.startswith(prefix)
            }
            if saved:
                part.load(saved)
            else:
                part.forget()

    def forget(self) -> None:
        for part in self.parts.values():
            part.forget()
