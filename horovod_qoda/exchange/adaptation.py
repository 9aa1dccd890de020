"""What changes slowly during training: step factors, levels, code tables, bits of each layer, and
the choice of reconstruction.

It changes at update exchanges, from integer counts summed over all ranks. Rank 0 decides and
broadcasts, because floating-point libraries differ between kinds of processors. Step factors also
follow the rate after every exchange (:mod:`horovod_qoda.exchange.rate`). The state is part of the
checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from horovod_qoda.coding import Book
from horovod_qoda.coding.payload import DITHERED, ROUNDED
from horovod_qoda.exchange import options, rate
from horovod_qoda.exchange.levels import histograms, predicted_counts, refit
from horovod_qoda.exchange.observations import (
    Arrays,
    rounding_variance,
    sample,
    symbol_entropy,
)
from horovod_qoda.exchange.options import AVERAGED, ZERO_SHARE
from horovod_qoda.layout import Layout
from horovod_qoda.quantization import step_factor, step_size
from horovod_qoda.settings import Settings

if TYPE_CHECKING:
    from horovod_qoda.exchange.buffer import ExchangeBuffer

STAGES = 2

EARLY_UPDATES = (0, 1, 4, 9, 19, 49, *range(99, 1000, 100))
"""Gradients change fastest at the start; later one update every ``UPDATE_EVERY`` exchanges."""

UPDATE_EVERY = 1000

EARLY_ALLOCATIONS = (19, 99, 499)
"""Updates at which L-GreCo runs before its turn every ``UPDATE_EVERY`` exchanges; the first as soon
as there are gradients to average that are not those of the very start."""

_PAID = (0.9, 1.1)
"""Limits of payload bits over entropy where level layers, whose norms travel too, have a part, or
headers a large one."""

_PROBE = 0.5
"""Octaves by which the step is refined to see how the rate answers."""


def is_update(exchange: int) -> bool:
    """True for exchanges whose symbols are counted and after which the state changes."""
    return exchange in EARLY_UPDATES or (exchange + 1) % UPDATE_EVERY == 0


def is_allocation(exchange: int) -> bool:
    """True for update exchanges at which the bits of layers are chosen anew."""
    return exchange in EARLY_ALLOCATIONS or (exchange + 1) % UPDATE_EVERY == 0


def precedes_allocation(exchange: int) -> bool:
    """True for the last ``AVERAGED`` exchanges up to an allocation: options are weighed on them."""
    return any(is_allocation(exchange + k) for k in range(AVERAGED))


class Adaptation:
    """State shared by all buffers of one optimizer; equal on all ranks.

    Attributes:
        factors: step over RMS, one for each distinct ``bits`` among the one-stream types.
        slope: bits a coordinate that halving all steps would add.
        wanted: bits a coordinate that all one-stream layers together should take.
        weights: for each of ``factors``, coordinates that were not all zero at the last update,
            over ranks; int64 in units of 1 / 1024.
        bits: per layer, the rate that L-GreCo gave it, or its own; float64, nan for raw layers.
        saved: per layer, the rate expected of ``bits`` over that of the layer's own; float64.
        reconstruction: per layer, ``ROUNDED`` or ``DITHERED``.
        books: agreed code tables of each stage, ``None`` until the first update.
        levels: level sequences, one for each of the layout's slots.
    """

    def __init__(self, layout: Layout, stages: int, settings: Settings | None = None) -> None:
        self._layout = layout
        self._stages = stages
        self._settings = settings or Settings()
        self._allocates = self._settings.allocation != "none"
        kinds = layout.types
        self._rates = sorted({t.bits for t in kinds if not t.raw and not t.levels})
        self._rate_of_type = np.array(
            [-1 if t.raw or t.levels else self._rates.index(t.bits) for t in kinds], np.int64
        )
        self._type_of_layer = np.array([x.type for x in layout.layers], np.int64)
        self._free = np.array([kinds[x.type].quantizer == "auto" for x in layout.layers], bool)
        self._table_of_type = np.array([layout.table(i) for i in range(len(kinds))], np.int64)
        self.factors = np.array([step_factor(bits) for bits in self._rates])
        own = [kinds[x.type].bits for x in layout.layers]
        self.bits = np.where([kinds[x.type].raw for x in layout.layers], np.nan, own)
        self.saved = np.ones(len(layout.layers))
        self.slope = 1.0
        numel, wanted = self._groups()
        self.wanted = float(np.average(wanted, weights=numel)) if numel.any() else 1.0
        self.weights = np.zeros(len(self._rates), np.int64)
        self.reconstruction = np.array(
            [DITHERED if kinds[x.type].quantizer == "dithered" else ROUNDED for x in layout.layers],
            np.uint8,
        )
        self.levels = [np.array(sequence, np.float32) for sequence in layout.levels]
        self.books: list[Book | None] = [None] * STAGES

    def steps(self, buffer: ExchangeBuffer) -> np.ndarray:
        """Step of every layer of the model, float32; zero outside ``buffer`` and in zero layers.

        The step is the factor times the root mean square of this rank's gradient of the layer
        (docs/theory.md section 8): unbiased, and no larger than this very gradient warrants.
        """
        steps = np.zeros(len(self._layout.layers), np.float32)
        for layer, square, numel, finite in zip(
            buffer.plan.layers, buffer.sum_sq, buffer.numel, buffer.finite, strict=True
        ):
            if finite:
                steps[layer] = self.step(layer, float(square), int(numel))
        return steps

    def step(self, layer: int, sum_sq: float, numel: int) -> np.float32:
        """Step of a one-stream layer for coordinates with this sum of squares."""
        group = self._rate_of_type[self._type_of_layer[layer]]
        if group < 0:
            return np.float32(0)
        return step_size(self.factors[group] * self._refinement(layer), sum_sq, numel)

    def _refinement(self, layer: int) -> float:
        """Factor on a layer's step that gives it the rate L-GreCo chose."""
        own = self._layout.types[self._type_of_layer[layer]].bits
        return 1.0 if self.bits[layer] == own else options.refinement(own, self.bits[layer])

    def new_histogram(self) -> np.ndarray:
        return np.zeros((STAGES, len(self._layout.types), 256), np.int64)

    def follow(self, buffers: list[ExchangeBuffer], exchange: int) -> None:
        """Keeps samples of this rank's gradients over the exchanges before an allocation."""
        if self._allocates and precedes_allocation(exchange):
            options.follow(self._layout, buffers, anew=not precedes_allocation(exchange - 1))

    def observe(
        self, buffers: list[ExchangeBuffer], symbols: np.ndarray, exchange: int
    ) -> tuple[Arrays, Arrays]:
        """What this rank contributes to an update: integer counts, and amounts.

        Args:
            symbols: counts of coded symbols, int64 [stages, types, 256].
        """
        counts = {
            "symbols": symbols,
            "seen": self.look(buffers),
            "slopes": self.slopes(buffers),
            "nonfinite": np.array([np.count_nonzero(~b.finite) for b in buffers], np.int64),
        }
        amounts = histograms(self._layout, buffers)
        if self._allocates and is_allocation(exchange):
            factors = np.append(self.factors, 0.0)[self._rate_of_type]
            amounts |= options.weigh(self._layout, buffers, factors)
        return counts, amounts

    def look(self, buffers: list[ExchangeBuffer]) -> np.ndarray:
        """Per layer, over a sample of this rank's gradient: coordinates, exact zeros, and the
        variance of rounding in units of step^2 / 2^20; int64, so that sums are exact."""
        seen = np.zeros((len(self._layout.layers), 3), np.int64)
        for buffer in buffers:
            steps = self.steps(buffer)
            for layer in buffer.plan.layers:
                if not self._free[layer] or not 0 < steps[layer] < np.inf:
                    continue
                values = buffer.fetch(layer, sample)
                scaled = values.astype(np.float64) / steps[layer]
                seen[layer] = (
                    len(values),
                    np.count_nonzero(values == 0),
                    int(2**20 * rounding_variance(scaled)),
                )
        return seen

    def slopes(self, buffers: list[ExchangeBuffer]) -> np.ndarray:
        """For each distinct ``bits``: bits gained per halving of the step on this rank's sample,
        times coordinates; bits at the present step, times coordinates; and those coordinates.
        int64 [rates, 3] in units of 1 / 1024.

        The gain is 1 where coordinates spread over many steps and the share of live coordinates
        where most are zero; a controller that took 1 for granted would never reach a sparse
        model's target.
        """
        gained, now, weight = np.zeros((3, len(self._rates)))
        for buffer in buffers:
            steps = self.steps(buffer)
            for layer in buffer.plan.layers:
                if not 0 < steps[layer] < np.inf:
                    continue
                scaled = buffer.fetch(layer, sample) / np.float64(steps[layer])
                group = self._rate_of_type[self._type_of_layer[layer]]
                numel = self._layout.layers[layer].numel
                bits = symbol_entropy(scaled)
                gained[group] += numel * (symbol_entropy(scaled * 2**_PROBE) - bits) / _PROBE
                now[group] += numel * bits
                weight[group] += numel
        return (1024 * np.stack([gained, now, weight], axis=1)).astype(np.int64)

    def update(self, counts: Arrays, amounts: Arrays, told: np.ndarray) -> None:
        """Takes the sums of all ranks and sets everything anew.

        Args:
            told: what all ranks know of this exchange's payloads, :attr:`Step.told`.
        """
        symbols = counts["symbols"]
        if "rates" in amounts:
            self._allocate(amounts)
        if not counts["nonfinite"].any():  # the rest alone would say what they have no part in
            self._weigh_rates(symbols, told, counts["slopes"])
        count, zeros, rounding = counts["seen"].T
        known = self._free & (count > 0)
        dither = (rounding / 2**20 > count / 12) & (zeros < ZERO_SHARE * count)
        self.reconstruction[known] = np.where(dither, DITHERED, ROUNDED)[known]
        changed = refit(self._layout, self._settings, self.levels, self._bits_of_type(), amounts)
        tables = self._tables(symbols, amounts, changed)
        for stage in range(self._stages):
            if symbols[stage].any():
                self.books[stage] = Book.from_histogram(tables[stage])

    def _tables(
        self, symbols: np.ndarray, amounts: Arrays, changed: dict[int, np.ndarray]
    ) -> np.ndarray:
        """Counts to make tables from: those seen, but for types whose levels are new."""
        tables = symbols.copy()
        for type, levels in changed.items():
            row = self._table_of_type[type]
            largest = np.flatnonzero(symbols[:, row, 1:].any(axis=0))
            as_many = bool(largest.size) and largest[-1] + 1 - 128 == len(levels) - 1
            predicted = predicted_counts(amounts, type, levels)
            if self._layout.pooled or predicted is None:
                # No table: it travels inline until symbols of the new levels have been counted.
                tables[:, row] = 0
                continue
            tables[0, row] = predicted
            if not as_many:  # the second stage's vector is another one: nothing to predict from
                tables[1, row] = 0
        return tables

    def _allocate(self, amounts: Arrays) -> None:
        mean = {key: amounts[key] for key in ("rates", "errors", "squares")}
        bits, saved = options.choose(
            self._layout, self._settings, mean["rates"], mean["errors"], mean["squares"][:, 0]
        )
        chosen = np.isfinite(bits)
        self.bits[chosen], self.saved[chosen] = bits[chosen], saved[chosen]

    def _bits_of_type(self) -> np.ndarray:
        """The rate in force for each type; with allocation, a type is one layer."""
        bits = np.array([t.bits for t in self._layout.types])
        if self._allocates:
            for layer, type in enumerate(self._type_of_layer):
                if np.isfinite(self.bits[layer]):
                    bits[type] = self.bits[layer]
        return bits

    def follow_rate(self, told: np.ndarray, age: int) -> None:
        """Moves all factors after an exchange so that the mean rate becomes what was asked for.

        Every rank does so, with the same result. Where some layers have levels, whose rate comes as
        it comes, or payloads are tiny, their bits do not tell: then only updates move factors.

        Args:
            told: what all ranks know of this exchange's payloads, :attr:`Step.told`.
            age: exchanges since adaptation began.
        """
        rates = rate.rates_to_steer_by(told)
        if rates and self._rates and self._lengths_tell(told):
            error = sum(rates) / len(rates) - self.wanted
            moved = self.factors * rate.correction(error, self.slope, age)
            self.factors = np.clip(moved, *rate.FACTORS)

    def _lengths_tell(self, told: np.ndarray) -> bool:
        return not self._layout.slots and rate.lengths_tell(told)

    def _weigh_rates(self, symbols: np.ndarray, told: np.ndarray, slopes: np.ndarray) -> None:
        """Moves the factors against each other, so that each group's rate becomes what was asked.

        Symbols tell the groups apart, payloads say what they come to: headers and tables add to the
        entropy, and tables of a payload's own can go below what is pooled over ranks and layers.
        """
        stages = [s for s in range(self._stages) if told[s, rate.LIVE]]
        quantized = [i for i, t in enumerate(self._layout.types) if not t.raw]
        pooled = [rate.mean_entropy(symbols[s, quantized]) for s in stages]
        paid = [
            bits / entropy if entropy else 1.0
            for bits, entropy in zip(rate.rates_to_steer_by(told), pooled, strict=True)
        ]
        lengths_tell = self._lengths_tell(told)
        if not lengths_tell:
            paid = np.clip(paid, *_PAID).tolist()
        numel, wanted = self._groups()
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
            types = np.flatnonzero(self._rate_of_type == group)
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
        moved = self.factors * np.exp2(np.nan_to_num(changes))
        self.factors = np.clip(moved, *rate.FACTORS)

    def _groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates and wanted bits of each group of types, float64 [groups] each."""
        numel = np.array([x.numel for x in self._layout.layers], np.float64)
        of_layer = self._rate_of_type[self._type_of_layer]
        sizes, wanted = np.zeros(len(self._rates)), np.array(self._rates, np.float64)
        for group in range(len(self._rates)):
            members = of_layer == group
            sizes[group] = numel[members].sum()
            if sizes[group]:
                # Allocation keeps the error of the own rates, not the rate.
                wanted[group] *= np.average(self.saved[members], weights=numel[members])
        return sizes, wanted

    def state_dict(self) -> dict[str, Any]:
        return {
            "factors": self.factors.tolist(),
            "slope": self.slope,
            "wanted": self.wanted,
            "weights": self.weights.tolist(),
            "bits": [None if np.isnan(b) else b for b in self.bits.tolist()],
            "saved": self.saved.tolist(),
            "levels": [sequence.tolist() for sequence in self.levels],
            "reconstruction": self.reconstruction.tolist(),
            "books": [None if b is None else b.to_bytes().hex() for b in self.books],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the state belongs to another model or other settings."""
        if len(state["factors"]) != len(self.factors) or len(state["reconstruction"]) != len(
            self.reconstruction
        ):
            raise ValueError(
                "the checkpoint's compression state is of another model or other settings: "
                f"{len(state['reconstruction'])} layers and {len(state['factors'])} rates, here "
                f"{len(self.reconstruction)} and {len(self.factors)}"
            )
        self.factors = np.array(state["factors"])
        self.slope, self.wanted = float(state["slope"]), float(state["wanted"])
        self.weights = np.array(state["weights"], np.int64)
        self.bits = np.array([np.nan if b is None else b for b in state["bits"]])
        self.saved = np.array(state["saved"])
        self.levels = [np.array(sequence, np.float32) for sequence in state["levels"]]
        self.reconstruction = np.array(state["reconstruction"], np.uint8)
        self.books = [
            None if tables is None else Book.from_bytes(bytes.fromhex(tables))
            for tables in state["books"]
        ]
