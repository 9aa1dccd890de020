"""L-GreCo in the exchange: what each layer could be given, and what it would cost.

Rates and errors are averages over the last gradients of every rank, estimated on samples without
coding anything. L-GreCo's own code looks at the average of the gradients instead; but an average is
not what travels: of ten gradients of an embedding, each with few live rows, it is dense.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from horovod_qoda.allocation import allocate, combine_errors, error_budget
from horovod_qoda.coding import entropy
from horovod_qoda.exchange.observations import (
    Arrays,
    sample,
    sample_of_buckets,
    spread_dither,
    symbol_entropy,
)
from horovod_qoda.layer_types import LayerType
from horovod_qoda.layout import Layout
from horovod_qoda.quantization import step_factor
from horovod_qoda.quantization.adaptive import (
    companded_levels,
    count_for_rate,
    expected_variance,
    level_rate,
)
from horovod_qoda.quantization.families import WHOLE_LAYER, level_sequence
from horovod_qoda.quantization.histogram import normalised_histograms
from horovod_qoda.settings import Settings

if TYPE_CHECKING:
    from horovod_qoda.exchange.buffer import ExchangeBuffer

BITS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0)
"""Rates offered besides a layer's own. Half bits where most layers end up: a finer choice gains,
and costs 2 ms a layer each time."""

AVERAGED = 10
"""Gradients that options are weighed on, as in L-GreCo."""

PART = 2048
"""Coordinates of a layer that are kept of each of them."""

ZERO_SHARE = 0.01
"""From this share of exact zeros on a layer is never dithered: dither moves coordinates that have
no gradient, and Adam would scale that to full steps (docs/theory.md section 8)."""


def options(kind: LayerType) -> tuple[float, ...]:
    """Rates on offer for a layer, its own among them; one for a type that has no choice."""
    if kind.raw:
        return ()
    if kind.quantizer == "ternary":
        return (kind.bits,)
    return tuple(sorted({*BITS, kind.bits}))


def follow(layout: Layout, buffers: list[ExchangeBuffer], anew: bool) -> None:
    """Adds a sample of this rank's gradients to ``buffer.followed``, or starts that anew.

    A row of it holds, for each quantised layer of the buffer, the RMS and a sample.
    """
    for buffer in buffers:
        parts = []
        squares = dict(
            zip(buffer.plan.layers, buffer.sum_sq / np.maximum(buffer.numel, 1), strict=True)
        )
        for layer in _quantized(layout, buffer):
            part = _part(layout, buffer, layer)
            # A gradient that is not finite is left out: an RMS of 0 says so.
            usable = np.isfinite(squares[layer])
            parts.append(np.array([np.sqrt(squares[layer]) if usable else 0.0], np.float32))
            parts.append(part if usable else np.zeros_like(part))
        row = np.concatenate(parts)[None, :] if parts else np.zeros((1, 0), np.float32)
        before = None if anew else buffer.followed
        buffer.followed = row if before is None else np.vstack([before, row])


def weigh(layout: Layout, buffers: list[ExchangeBuffer], factors: np.ndarray) -> Arrays:
    """Options of every layer on what :func:`follow` has gathered, which is then forgotten.

    Args:
        factors: per type, step over RMS at the type's own rate.

    Returns:
        "rates" and "errors", [layers, most options], as :func:`measure` has them; "squares",
        [layers, 1], mean squares.
    """
    count = len(layout.layers)
    most = max((len(options(kind)) for kind in layout.types), default=0)
    rates, errors = np.zeros((2, count, most))
    squares = np.zeros((count, 1))
    for buffer in buffers:
        start = 0
        for layer in _quantized(layout, buffer):
            type = layout.layers[layer].type
            stop = start + 1 + _part(layout, buffer, layer).size
            if buffer.followed is None or stop == start + 1:
                start = stop
                continue
            live = buffer.followed[buffer.followed[:, start] > 0, start:stop]
            start = stop
            if not len(live):
                continue
            rms, gradients = live[:, 0].astype(np.float64), live[:, 1:]
            points = measure(gradients, rms, layout.types[type], float(factors[type]))
            rates[layer, : len(points)], errors[layer, : len(points)] = points.T
            squares[layer] = np.mean(rms**2)
        buffer.followed = None
    return {"rates": rates, "errors": errors, "squares": squares}


def _quantized(layout: Layout, buffer: ExchangeBuffer) -> list[int]:
    return [i for i in buffer.plan.layers if not layout.types[layout.layers[i].type].raw]


def _part(layout: Layout, buffer: ExchangeBuffer, layer: int) -> np.ndarray:
    """The sample of a layer's gradient that is kept until options are weighed."""
    kind, numel = layout.types[layout.layers[layer].type], len(buffer.span(layer))
    if kind.bucket_size and kind.bucket_size <= numel:
        return buffer.fetch(layer, lambda v: sample_of_buckets(v, kind.bucket_size, PART)).ravel()
    return buffer.fetch(layer, lambda v: sample(v, PART))


def measure(gradients: np.ndarray, rms: np.ndarray, kind: LayerType, factor: float) -> np.ndarray:
    """Bits per coordinate and squared error per coordinate of every option, float64 [options, 2].

    Args:
        gradients: samples of several gradients of one layer, [t, n], whole buckets where there are
            any; a layer that is one bucket is stood for by its sample.
        rms: of the whole gradients, [t], positive.
        factor: step over RMS of a one-stream type at its own rate.
    """
    points = np.zeros((len(options(kind)), 2))
    if not kind.levels:
        for point, bits in zip(points, options(kind), strict=True):
            steps = factor * refinement(kind.bits, bits) * rms[:, None]
            point[:] = _one_stream(gradients.astype(np.float64), steps, kind.quantizer)
        return points
    flat = gradients.ravel()
    size = kind.bucket_size if kind.bucket_size <= gradients.shape[1] else 0
    counts, weighted = normalised_histograms(flat, size or gradients.shape[1], kind.norm)
    bucket = kind.bucket_size or WHOLE_LAYER
    for point, bits in zip(points, options(kind), strict=True):
        if kind.quantizer == "adaptive":
            count = count_for_rate(counts, weighted, bits, bucket) if weighted.any() else 0
            levels = companded_levels(weighted, count)
        else:
            levels = level_sequence(kind.quantizer, bits, kind.bucket_size, kind.norm)
        if kind.quantizer == "maxmin":
            point[:] = _maxmin(flat.reshape(-1, size or gradients.shape[1]), len(levels))
        else:
            squares = expected_variance(weighted, levels) * weighted.sum()
            point[:] = level_rate(counts, levels, bucket), squares / gradients.size
    return points


def refinement(own: float, wanted: float) -> float:
    """Factor on the step that turns the rate ``own`` of Gaussian coordinates into ``wanted``."""
    return step_factor(wanted) / step_factor(own)


def choose(
    layout: Layout, settings: Settings, rates: np.ndarray, errors: np.ndarray, squares: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """L-GreCo's choice for every layer.

    Args:
        rates, errors: [layers, most options], means over ranks of what :func:`measure` returns.
        squares: [layers] mean square of a coordinate.

    Returns:
        ``(bits, saved)``, float64 [layers]: the chosen rate (nan for raw layers), and what the
        choice takes over what the layer's own rate would.
    """
    bits, saved = np.full((2, len(layout.layers)), np.nan)
    sizes, costs, default, chosen_from = [], [], [], []
    for layer in layout.layers:
        kind = layout.types[layer.type]
        offered = options(kind)
        if not offered or not layer.numel:
            continue
        mine = settings.for_layer(layer.name, layer.kind)
        assert mine is not None
        n = len(offered)
        sizes.append(layer.numel * rates[layer.index, :n])
        costs.append(
            combine_errors(
                layer.numel * errors[layer.index, :n],
                settings.allocation_error,
                mine.sensitivity,
                float(squares[layer.index]),
            )
        )
        default.append(offered.index(kind.bits))
        chosen_from.append((layer.index, offered))
    if not sizes:
        return bits, saved
    budget = error_budget(costs, default, settings.allocation_alpha)
    choice = allocate(sizes, costs, budget, default)
    for (index, offered), size, own, chosen in zip(
        chosen_from, sizes, default, choice, strict=True
    ):
        bits[index] = offered[chosen]
        saved[index] = size[chosen] / size[own] if size[own] else 1.0
    return bits, saved


def _one_stream(gradients: np.ndarray, steps: np.ndarray, quantizer: str) -> tuple[float, float]:
    scaled = gradients / steps
    fraction = scaled - np.floor(scaled)
    rounded = float(np.mean(steps**2 * fraction * (1 - fraction)))
    dithered = float(np.mean(steps**2)) / 12
    zeros = np.count_nonzero(gradients == 0) >= ZERO_SHARE * gradients.size
    variance = {"rounded": rounded, "dithered": dithered}.get(
        quantizer, rounded if zeros else min(rounded, dithered)
    )
    return symbol_entropy(scaled), variance


def _maxmin(rows: np.ndarray, entries: int) -> tuple[float, float]:
    """Of buckets, one a row."""
    rows = rows.astype(np.float64)
    low = rows.min(axis=1, keepdims=True)
    unit = (rows.max(axis=1, keepdims=True) - low) / (2 * entries - 1)
    scaled = np.divide(rows - low, unit, out=np.zeros_like(rows), where=unit > 0)
    fraction = scaled - np.floor(scaled)
    symbols = np.floor(scaled + spread_dither(scaled.shape))
    bits = entropy(np.unique(symbols, return_counts=True)[1]) + 64 / rows.shape[1]
    return bits, float(np.mean(unit**2 * fraction * (1 - fraction)))
