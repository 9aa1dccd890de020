"""Levels that follow the gradients: histograms on every rank, the fit on one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from horovod_qoda.exchange.observations import Arrays
from horovod_qoda.layout import Layout
from horovod_qoda.quantization.adaptive import count_for_rate, fit_levels, symbol_probabilities
from horovod_qoda.quantization.families import WHOLE_LAYER, level_sequence
from horovod_qoda.quantization.histogram import SLOTS, normalised_histograms
from horovod_qoda.settings import Settings

if TYPE_CHECKING:
    from horovod_qoda.exchange.buffer import ExchangeBuffer


def histograms(layout: Layout, buffers: list[ExchangeBuffer]) -> Arrays:
    """Histograms of this rank's normalised magnitudes for every adaptive type, [types, SLOTS]:
    "magnitudes" counts, "weighted" by squared norms. Empty where no type is adaptive."""
    if not any(t.quantizer == "adaptive" for t in layout.types):
        return {}
    found = {name: np.zeros((len(layout.types), SLOTS)) for name in ("magnitudes", "weighted")}
    for buffer in buffers:
        for layer, finite in zip(buffer.plan.layers, buffer.finite, strict=True):
            type = layout.layers[layer].type
            kind = layout.types[type]
            if kind.quantizer != "adaptive" or not finite:
                continue
            values = buffer.fetch(layer, lambda whole: whole)
            pair = normalised_histograms(values, kind.bucket_size, kind.norm)
            found["magnitudes"][type] += pair[0]
            found["weighted"][type] += pair[1]
    return found


def refit(
    layout: Layout,
    settings: Settings,
    levels: list[np.ndarray],
    bits: np.ndarray,
    amounts: Arrays,
) -> dict[int, np.ndarray]:
    """Fits the levels of every type whose levels change, in place.

    Args:
        levels: by slot; replaced.
        bits: rate wanted of each type.
        amounts: :func:`histograms`, summed over ranks.

    Returns:
        Type -> new levels, for those that are not as before.
    """
    changed = {}
    for type, slot in layout.slots.items():
        kind = layout.types[type]
        if kind.quantizer == "adaptive":
            counts, weighted = amounts["magnitudes"][type], amounts["weighted"][type]
            if not weighted[1:-1].any():
                continue
            count = _fixed_count(layout, settings, type)
            if count is None:
                bucket = kind.bucket_size or WHOLE_LAYER
                count = count_for_rate(counts, weighted, float(bits[type]), bucket)
            fitted = fit_levels(weighted, count, settings.level_solver)
        elif kind.adapts:
            fitted = level_sequence(kind.quantizer, float(bits[type]), kind.bucket_size, kind.norm)
        else:
            continue
        if not np.array_equal(fitted, levels[slot]):
            levels[slot] = changed[type] = fitted
    return changed


def predicted_counts(amounts: Arrays, type: int, levels: np.ndarray) -> np.ndarray | None:
    """Counts of the 256 codes that an adaptive type's symbols will have with these levels.

    Signs are taken as equally likely. None for a type without histogram.
    """
    if "magnitudes" not in amounts or not amounts["magnitudes"][type].any():
        return None
    counts = amounts["magnitudes"][type]
    p = symbol_probabilities(counts, levels)
    out = np.zeros(256, np.int64)
    # At least one of each: a symbol in use must not become an escape.
    each = np.maximum(np.rint(p * counts.sum()), 2).astype(np.int64)
    out[128] = each[0]
    top = len(levels) - 1
    out[129 : 129 + top] = each[1:] // 2
    out[128 - top : 128] = each[:0:-1] // 2
    return out


def _fixed_count(layout: Layout, settings: Settings, type: int) -> int | None:
    """``levels`` of a type's settings, where given."""
    layer = next(x for x in layout.layers if x.type == type)
    mine = settings.for_layer(layer.name, layer.kind)
    return mine.levels if mine is not None else None
