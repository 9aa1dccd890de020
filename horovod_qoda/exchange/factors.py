"""Step factors: step over RMS, one for each distinct ``bits``, that make payloads take those bits.

After every exchange all factors move together, by what payloads took (:mod:`rate`); at update
exchanges they move against each other, by the symbols that were counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from horovod_qoda.exchange import rate
from horovod_qoda.exchange.observations import sample, symbol_entropy
from horovod_qoda.layout import Layout
from horovod_qoda.quantization import step_factor

if TYPE_CHECKING:
    from horovod_qoda.exchange.buffer import ExchangeBuffer

_PAID = (0.9, 1.1)
"""Limits of payload bits over entropy where level layers, whose norms travel too, have a part, or
headers a large one."""

_PROBE = 0.5
"""Octaves by which the step is refined to see how the rate answers."""


class StepFactors:
    """The factors of the one-stream types of a layout, in groups of equal ``bits``.

    Attributes:
        values: step over RMS of each group, float64.
        slope: bits a coordinate that halving all steps would add.
        wanted: bits a coordinate that all one-stream layers together should take.
        weights: for each group, coordinates that were not all zero at the last update, over ranks;
            int64 in units of 1 / 1024.
    """

    def __init__(self, layout: Layout) -> None:
        kinds = layout.types
        self._layout = layout
        self._bits = sorted({t.bits for t in kinds if not t.raw and not t.levels})
        self._group_of_type = np.array(
            [-1 if t.raw or t.levels else self._bits.index(t.bits) for t in kinds], np.int64
        )
        self._group_of_layer = self._group_of_type[[x.type for x in layout.layers]]
        self.values = np.array([step_factor(bits) for bits in self._bits])
        self.slope = 1.0
        numel, wanted = self._groups(np.ones(len(layout.layers)))
        self.wanted = float(np.average(wanted, weights=numel)) if numel.any() else 1.0
        self.weights = np.zeros(len(self._bits), np.int64)

    def of_layer(self, layer: int) -> float:
        """The layer's factor; 0 where it is raw or has levels."""
        group = self._group_of_layer[layer]
        return 0.0 if group < 0 else float(self.values[group])

    def of_types(self) -> np.ndarray:
        """Factor of every type, float64 [types]; 0 where it is raw or has levels."""
        return np.append(self.values, 0.0)[self._group_of_type]

    def slopes(
        self, buffers: list[ExchangeBuffer], steps_of: Callable[[ExchangeBuffer], np.ndarray]
    ) -> np.ndarray:
        """For each group: bits gained per halving of the step on this rank's sample, times
        coordinates; bits at the present step, times coordinates; and those coordinates. int64
        [groups, 3] in units of 1 / 1024.

        The gain is 1 where coordinates spread over many steps and the share of live coordinates
        where most are zero; a controller that took 1 for granted would never reach a sparse
        model's target.

        Args:
            steps_of: step of every layer of the model, zero outside the buffer.
        """
        gained, now, weight = np.zeros((3, len(self._bits)))
        for buffer in buffers:
            steps = steps_of(buffer)
            for layer in buffer.plan.layers:
                if not 0 < steps[layer] < np.inf:
                    continue
                scaled = buffer.fetch(layer, sample) / np.float64(steps[layer])
                group = self._group_of_layer[layer]
                numel = self._layout.layers[layer].numel
                bits = symbol_entropy(scaled)
                gained[group] += numel * (symbol_entropy(scaled * 2**_PROBE) - bits) / _PROBE
                now[group] += numel * bits
                weight[group] += numel
        return (1024 * np.stack([gained, now, weight], axis=1)).astype(np.int64)

    def follow(self, told: np.ndarray, age: int) -> None:
        """Moves all factors after an exchange so that the mean rate becomes what was asked for.

        Every rank does so, with the same result. Where some layers have levels, whose rate comes as
        it comes, or payloads are tiny, their bits do not tell: then only updates move factors.

        Args:
            told: what all ranks know of this exchange's payloads, :attr:`Step.told`.
            age: exchanges since adaptation began.
        """
        rates = rate.rates_to_steer_by(told)
        if rates and self._bits and self._lengths_tell(told):
            error = sum(rates) / len(rates) - self.wanted
            moved = self.values * rate.correction(error, self.slope, age)
            self.values = np.clip(moved, *rate.FACTORS)

    def weigh(
        self, symbols: np.ndarray, told: np.ndarray, slopes: np.ndarray, saved: np.ndarray
    ) -> None:
        """Moves the factors against each other, so that each group's rate becomes what was asked.

        Symbols tell the groups apart, payloads say what they come to: headers and tables add to the
        entropy, and tables of a payload's own can go below what is pooled over ranks and layers.

        Args:
            symbols: counts over ranks, int64 [stages, types, 256].
            told: as for :meth:`follow`.
            slopes: sums over ranks of :meth:`slopes`.
            saved: per layer, the rate expected of its allocated bits over that of its own.
        """
        stages = [s for s in range(len(told)) if told[s, rate.LIVE]]
        quantized = [i for i, t in enumerate(self._layout.types) if not t.raw]
        pooled = [rate.mean_entropy(symbols[s, quantized]) for s in stages]
        paid = [
            bits / entropy if entropy else 1.0
            for bits, entropy in zip(rate.rates_to_steer_by(told), pooled, strict=True)
        ]
        lengths_tell = self._lengths_tell(told)
        if not lengths_tell:
            paid = np.clip(paid, *_PAID).tolist()
        numel, wanted = self._groups(saved)
        gained, sampled, weight = slopes.T
        answers = np.divide(gained, weight, out=np.ones(len(numel)), where=weight > 0)
        answers = np.clip(answers, *rate.SLOPES)
        # Layers that are all zero take nothing, and count for nothing once they are it twice.
        counted = np.maximum(weight, self.weights)
        if weight.any():
            self.slope = float(np.average(answers, weights=weight))
            self.wanted = float(np.average(wanted, weights=counted))
            self.weights = weight.copy()
        changes = np.full(len(numel), np.nan)
        for group in range(len(numel)):
            types = np.flatnonzero(self._group_of_type == group)
            if self._layout.pooled and weight[group]:
                # One table for all types does not tell their rates apart: samples do, and payloads
                # say what they come to where all of them are of one stream.
                rates = [sampled[group] / weight[group]]
                if not self._layout.slots and sampled.any():
                    share = rates[0] * weight.sum() / sampled.sum()
                    rates = [share * p * entropy for p, entropy in zip(paid, pooled, strict=True)]
            else:
                rates = [
                    p * rate.mean_entropy(symbols[s, types])
                    for s, p in zip(stages, paid, strict=True)
                ]
            if rates and numel[group]:
                error = (np.mean(rates) - wanted[group]) / answers[group]
                changes[group] = np.clip(error, -rate.MAX_CHANGE, rate.MAX_CHANGE)
        if lengths_tell:  # what they have in common follows the payloads' lengths
            changes = rate.apart(changes, numel * answers)
        moved = self.values * np.exp2(np.nan_to_num(changes))
        self.values = np.clip(moved, *rate.FACTORS)

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists, equal on all ranks."""
        return {
            "values": self.values.tolist(),
            "slope": self.slope,
            "wanted": self.wanted,
            "weights": self.weights.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values = np.array(state["values"])
        self.slope, self.wanted = float(state["slope"]), float(state["wanted"])
        self.weights = np.array(state["weights"], np.int64)

    def _lengths_tell(self, told: np.ndarray) -> bool:
        return not self._layout.slots and rate.lengths_tell(told)

    def _groups(self, saved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates and wanted bits of each group, float64 [groups] each."""
        numel = np.array([x.numel for x in self._layout.layers], np.float64)
        sizes, wanted = np.zeros(len(self._bits)), np.array(self._bits, np.float64)
        for group in range(len(self._bits)):
            members = self._group_of_layer == group
            sizes[group] = numel[members].sum()
            if sizes[group]:
                # Allocation keeps the error of the own rates, not the rate.
                wanted[group] *= np.average(saved[members], weights=numel[members])
        return sizes, wanted
