"""Layer by layer, what an exchange did: bits, entropy and error, from samples of its buffers.

Layers of one type share coding blocks, so a layer's bytes are not lengths that could be read off a
payload. A sample of each layer is coded again by itself, with the settings and tables in force, and
the bytes that the exchange really sent are apportioned by the result: they add up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from horovod_qoda import coding
from horovod_qoda.allocation import low_rank_numbers
from horovod_qoda.coding.payload import MAXMIN, RAW
from horovod_qoda.coding.tables import SCALE, normalize

if TYPE_CHECKING:
    from horovod_qoda.exchange import Exchange
    from horovod_qoda.exchange.buffer import ExchangeBuffer

WINDOW = 1024
"""Coordinates in a row that are sampled: buckets, which share a norm, are at most that long."""

WINDOWS = 16
"""Windows a layer, spread evenly: 16 Ki coordinates tell a rate to about 0.02 bit."""

_ITEMSIZE = {"torch.float64": 8, "torch.float16": 2, "torch.bfloat16": 2}


def model(exchange: Exchange) -> dict[str, list[Any]]:
    """What does not change from exchange to exchange, one entry a layer."""
    layout = exchange.layout
    return {
        "names": [x.name for x in layout.layers],
        "numel": [x.numel for x in layout.layers],
        "quantizer": [layout.types[x.type].quantizer for x in layout.layers],
    }


def measure(exchange: Exchange, wire_bytes: int) -> dict[str, list[float]]:
    """Figures of the exchange that has just ended, one entry a layer, in the layout's order.

    - ``bits``: coded bits a coordinate of the first stage, 32 for raw layers;
    - ``entropy``: of the sample's symbols, nan for raw layers;
    - ``error``: squared error of the sample as others decode it, over its squares;
    - ``raw_bytes``: as the script holds the gradient;
    - ``wire_bytes``: the layer's share of those given, by bits; both stages are taken to share
      alike.

    A layer that was all zero, or not finite, has 0 bits and error nan; one that travels by PowerSGD
    has the bits of its two matrices, and nan for the others. With two levels, samples are of this
    rank's gradient, while what is coded is its host's mean. Must be called between the
    end of an exchange and the start of the next one, whose gradients overwrite the buffers.
    """
    layers = exchange.layout.layers
    bits, entropy, error = np.full((3, len(layers)), np.nan)
    for layer, rank in exchange.routes.power_sgd.ranks.items():
        shape = layers[layer].shape
        bits[layer] = 32 * low_rank_numbers(shape, rank) / layers[layer].numel
    for buffer in exchange.routes.buffers:
        steps = exchange.adaptation.steps(buffer)
        for chunk in buffer.chunks:
            rows = buffer.segments(chunk, steps, exchange.adaptation.reconstruction)
            for row, layer in zip(rows, chunk.layers, strict=True):
                if np.isnan(bits[layer]):  # a layer that chunks divide is one layer
                    figures = _layer(exchange, buffer, int(layer), row)
                    bits[layer], entropy[layer], error[layer] = figures
    raw = [x.numel * _ITEMSIZE.get(x.dtype, 4) for x in layers]
    weights = np.nan_to_num(bits) * [x.numel for x in layers]
    total = weights.sum()
    shares = weights * (wire_bytes / total) if total else np.zeros(len(layers))
    return {
        "bits": bits.tolist(),
        "entropy": entropy.tolist(),
        "error": error.tolist(),
        "raw_bytes": [float(x) for x in raw],
        "wire_bytes": shares.tolist(),
    }


def _layer(
    exchange: Exchange, buffer: ExchangeBuffer, layer: int, row: np.void
) -> tuple[float, float, float]:
    if row["quantizer"] == RAW:
        return 32.0, np.nan, 0.0
    values = sample(buffer.span(layer), buffer.codec.fetch)
    squares = float(np.sum(values.astype(np.float64) ** 2))
    if row["nonfinite"] or not squares > 0:
        return 0.0, 0.0, np.nan
    rows = np.array([row], coding.SEGMENT)
    rows["offset"], rows["index"], rows["numel"] = 0, 0, len(values)
    counts = np.zeros((int(row["type"]) + 1, 256), np.int64)
    book, levels = exchange.adaptation.books[0], exchange.adaptation.levels
    head = coding.Header(0, exchange.number, 0, 0, 0, 0)
    blob = np.empty(coding.max_payload_bytes(rows), np.uint8)
    length = coding.encode(values, rows, head, blob, levels=levels, histogram=counts)
    decoded = np.empty_like(values)
    coding.decode(blob[:length], rows, decoded, expect=head, levels=levels)
    wrong = float(np.sum((decoded.astype(np.float64) - values) ** 2)) / squares
    own = counts[-1]
    table = None if book is None else book.tables[int(row["type"])]
    side = 32.0 / int(row["bucket"]) if row["bucket"] else 0.0
    side *= 2 if row["quantizer"] == MAXMIN else 1
    return coded_bits(own, table) + side, coding.entropy(own), wrong


def coded_bits(counts: np.ndarray, table: np.ndarray | None) -> float:
    """Bits a symbol with an agreed table [256], or with one made for these counts [256].

    An escape is followed by a byte.
    """
    total = counts.sum()
    if not total:
        return 0.0
    if table is None or not table[counts > 0].all():
        table = normalize(counts)
    # A rare code without a slot travels as an escape.
    slotless = (table == 0) & (counts > 0)
    counts = np.where(slotless, 0, counts)
    counts[0] += total - counts.sum()
    used = counts > 0
    lengths = np.log2(SCALE / table[used].astype(np.float64))
    return float((counts[used] @ lengths + 8 * counts[0]) / total)


def sample(values: Any, fetch: Callable[[Any], np.ndarray] = np.asarray) -> np.ndarray:
    """Up to `WINDOWS` windows of `WINDOW` coordinates, spread evenly over a layer; float32 copy.

    ``fetch`` brings a slice of ``values`` into the host's memory.
    """
    if len(values) <= WINDOW * WINDOWS:
        return fetch(values).copy()
    starts = np.linspace(0, len(values) - WINDOW, WINDOWS).astype(int).tolist()
    return np.concatenate([fetch(values[start : start + WINDOW]) for start in starts])
