"""What changes slowly during training: step factors, code tables, the choice of reconstruction.

It changes only at update exchanges, from integer counts summed over all ranks. Rank 0 decides and
broadcasts, because floating-point libraries differ between kinds of processors; the state is part
of the checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from horovod_qoda.coding import Book, entropy, entropy_bits
from horovod_qoda.coding.payload import DITHERED, ROUNDED
from horovod_qoda.layout import Layout
from horovod_qoda.quantization import step_factor, step_size

if TYPE_CHECKING:
    from horovod_qoda.exchange.buffer import ExchangeBuffer

STAGES = 2

EARLY_UPDATES = (0, 1, 4, 9, 19, 49, *range(99, 1000, 100))
"""Gradients change fastest at the start; later one update every ``UPDATE_EVERY`` exchanges."""

UPDATE_EVERY = 1000

SAMPLE = 16 * 1024
"""Coordinates of a layer looked at to choose its reconstruction and to predict its rate."""

ZERO_SHARE = 0.01
"""From this share of exact zeros on a layer is never dithered: dither moves coordinates that have
no gradient, and Adam would scale that to full steps (docs/theory.md section 8)."""

_PROBE = 0.5
"""Octaves by which the step is refined to see how the rate answers."""

SLOPES = (0.2, 1.2)
"""Limits of that answer: a sample must not turn a small error into a wild change."""

MAX_CHANGE = 1.0
"""Largest change of log2 of a step factor at one update: one odd gradient must not throw it."""


def is_update(exchange: int) -> bool:
    """True for exchanges whose symbols are counted and after which the state changes."""
    return exchange in EARLY_UPDATES or (exchange + 1) % UPDATE_EVERY == 0


class Adaptation:
    """State shared by all buffers of one optimizer; equal on all ranks.

    Attributes:
        factors: step over RMS, one for each distinct ``bits`` among the one-stream types.
        reconstruction: per layer, ``ROUNDED`` or ``DITHERED``.
        books: agreed code tables of each stage, ``None`` until the first update.
        levels: distinct level sequences, in the order in which layout.levels lists them.
    """

    def __init__(self, layout: Layout, stages: int) -> None:
        self._layout = layout
        self._stages = stages
        kinds = layout.types
        self._rates = sorted({t.bits for t in kinds if not t.raw and not t.levels})
        self._rate_of_type = np.array(
            [self._rates.index(t.bits) if t.bits in self._rates else -1 for t in kinds], np.int64
        )
        self._type_of_layer = np.array([x.type for x in layout.layers], np.int64)
        self._free = np.array([kinds[x.type].quantizer == "auto" for x in layout.layers], bool)
        self.factors = np.array([step_factor(bits) for bits in self._rates])
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
        return step_size(float(self.factors[group]), sum_sq, numel) if group >= 0 else np.float32(0)

    def new_histogram(self) -> np.ndarray:
        return np.zeros((STAGES, len(self._layout.types), 256), np.int64)

    def look(self, buffers: list[ExchangeBuffer]) -> np.ndarray:
        """Per layer, over a sample of this rank's gradient: coordinates, exact zeros, and the
        variance of rounding in units of step^2 / 2^20; int64, so that sums are exact."""
        seen = np.zeros((len(self._layout.layers), 3), np.int64)
        for buffer in buffers:
            steps = self.steps(buffer)
            for layer in buffer.plan.layers:
                if not self._free[layer] or not 0 < steps[layer] < np.inf:
                    continue
                values = _sample(buffer.span(layer))
                scaled = values.astype(np.float64) / steps[layer]
                fraction = scaled - np.floor(scaled)
                seen[layer] = (
                    len(values),
                    np.count_nonzero(values == 0),
                    int(2**20 * float(np.sum(fraction * (1 - fraction)))),
                )
        return seen

    def slopes(self, buffers: list[ExchangeBuffer]) -> np.ndarray:
        """For each distinct ``bits``: bits gained per halving of the step on this rank's sample,
        times coordinates, and those coordinates; int64 [rates, 2] in units of 1 / 1024.

        The gain is 1 where coordinates spread over many steps and the share of live coordinates
        where most are zero; a controller that took 1 for granted would never reach a sparse
        model's target.
        """
        gained, weight = np.zeros((2, len(self._rates)))
        for buffer in buffers:
            steps = self.steps(buffer)
            for layer in buffer.plan.layers:
                if not 0 < steps[layer] < np.inf:
                    continue
                scaled = _sample(buffer.span(layer)) / np.float64(steps[layer])
                group = self._rate_of_type[self._type_of_layer[layer]]
                numel = self._layout.layers[layer].numel
                finer = _sample_entropy(scaled * 2**_PROBE) - _sample_entropy(scaled)
                gained[group] += numel * finer / _PROBE
                weight[group] += numel
        return (1024 * np.stack([gained, weight], axis=1)).astype(np.int64)

    def update(self, histogram: np.ndarray, seen: np.ndarray, slopes: np.ndarray) -> None:
        """Takes the counts of all ranks and sets tables, factors and reconstructions anew."""
        for stage in range(self._stages):
            if histogram[stage].any():
                self.books[stage] = Book.from_histogram(histogram[stage])
        for group, bits in enumerate(self._rates):
            types = np.flatnonzero(self._rate_of_type == group)
            rates = [mean_entropy(histogram[s, types]) for s in range(self._stages)]
            if np.isfinite(rates).all():
                rate = np.mean(rates)
                gained, weight = slopes[group]
                slope = np.clip(gained / weight if weight else 1.0, *SLOPES)
                change = float(np.clip((rate - bits) / slope, -MAX_CHANGE, MAX_CHANGE))
                self.factors[group] *= 2.0**change
        count, zeros, rounding = seen.T
        known = self._free & (count > 0)
        dither = (rounding / 2**20 > count / 12) & (zeros < ZERO_SHARE * count)
        self.reconstruction[known] = np.where(dither, DITHERED, ROUNDED)[known]

    def state_dict(self) -> dict[str, Any]:
        return {
            "factors": self.factors.tolist(),
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
        self.reconstruction = np.array(state["reconstruction"], np.uint8)
        self.books = [
            None if tables is None else Book.from_bytes(bytes.fromhex(tables))
            for tables in state["books"]
        ]


def _sample(values: np.ndarray) -> np.ndarray:
    return values[:: max(1, len(values) // SAMPLE)]


def _sample_entropy(scaled: np.ndarray) -> float:
    """Bits per symbol of the one-stream quantiser at step 1."""
    # Multiples of the golden ratio are spread evenly over [0, 1) and need no generator.
    dither = (np.arange(len(scaled)) * 0.6180339887498949) % 1
    return entropy(np.unique(np.floor(scaled + dither), return_counts=True)[1])


def mean_entropy(histogram: np.ndarray) -> float:
    """Mean bits per symbol of counts [n, 256], each row with a table of its own; nan for no counts.

    An escape (column 0) is followed by a byte, but for rare ones far out.
    """
    count = histogram.sum()
    if not count:
        return float("nan")
    return float((entropy_bits(histogram) + 8 * histogram[:, 0].sum()) / count)
