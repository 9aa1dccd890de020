"""What changes slowly during training: step factors, levels, code tables, bits of each layer, and
the choice of reconstruction.

It changes at update exchanges, from integer counts summed over all ranks. Rank 0 decides and
broadcasts, because floating-point libraries differ between kinds of processors. Step factors follow
the rate after every exchange too (:mod:`horovod_qoda.exchange.factors`). The state is part of the
checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from horovod_qoda.coding import Book
from horovod_qoda.coding.payload import DITHERED, ROUNDED
from horovod_qoda.exchange import options
from horovod_qoda.exchange.factors import StepFactors
from horovod_qoda.exchange.levels import histograms, predicted_counts, refit
from horovod_qoda.exchange.observations import Arrays, rounding_variance, sample
from horovod_qoda.exchange.options import AVERAGED, ZERO_SHARE
from horovod_qoda.layout import Layout
from horovod_qoda.quantization import step_size
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
        factors: step over RMS of the one-stream layers.
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
        self._type_of_layer = np.array([x.type for x in layout.layers], np.int64)
        self._free = np.array([kinds[x.type].quantizer == "auto" for x in layout.layers], bool)
        self._table_of_type = np.array([layout.table(i) for i in range(len(kinds))], np.int64)
        self.factors = StepFactors(layout)
        own = [kinds[x.type].bits for x in layout.layers]
        self.bits = np.where([kinds[x.type].raw for x in layout.layers], np.nan, own)
        self.saved = np.ones(len(layout.layers))
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
        """Step of a layer for coordinates with this sum of squares; 0 where it needs none."""
        factor = self.factors.of_layer(layer)
        if not factor:
            return np.float32(0)
        return step_size(factor * self._refinement(layer), sum_sq, numel)

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
            "slopes": self.factors.slopes(buffers, self.steps),
            "nonfinite": np.array([np.count_nonzero(~b.finite) for b in buffers], np.int64),
        }
        amounts = histograms(self._layout, buffers)
        if self._allocates and is_allocation(exchange):
            amounts |= options.weigh(self._layout, buffers, self.factors.of_types())
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

    def update(self, counts: Arrays, amounts: Arrays, told: np.ndarray) -> None:
        """Takes the sums of all ranks and sets everything anew.

        Args:
            told: what all ranks know of this exchange's payloads, :attr:`Step.told`.
        """
        symbols = counts["symbols"]
        if "rates" in amounts:
            self._allocate(amounts)
        if not counts["nonfinite"].any():  # the rest alone would say what they have no part in
            self.factors.weigh(symbols, told, counts["slopes"], self.saved)
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

    def state_dict(self) -> dict[str, Any]:
        return {
            "factors": self.factors.state_dict(),
            "bits": [None if np.isnan(b) else b for b in self.bits.tolist()],
            "saved": self.saved.tolist(),
            "levels": [sequence.tolist() for sequence in self.levels],
            "reconstruction": self.reconstruction.tolist(),
            "books": [None if b is None else b.to_bytes().hex() for b in self.books],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the state belongs to another model or other settings."""
        if not isinstance(state["factors"], dict):
            raise ValueError(
                "the checkpoint's compression state was saved by an earlier version: remove its "
                "'horovod_qoda' entry, and compression adapts anew"
            )
        here = (len(self.reconstruction), len(self.factors.values))
        there = (len(state["reconstruction"]), len(state["factors"]["values"]))
        if there != here:
            raise ValueError(
                "the checkpoint's compression state is of another model or other settings: "
                f"{there[0]} layers and {there[1]} rates, here {here[0]} and {here[1]}"
            )
        self.factors.load_state_dict(state["factors"])
        self.bits = np.array([np.nan if b is None else b for b in state["bits"]])
        self.saved = np.array(state["saved"])
        self.levels = [np.array(sequence, np.float32) for sequence in state["levels"]]
        self.reconstruction = np.array(state["reconstruction"], np.uint8)
        self.books = [
            None if tables is None else Book.from_bytes(bytes.fromhex(tables))
            for tables in state["books"]
        ]
