# mypy: disable-error-code="no-untyped-def"
"""Reductions over runs of at most 65,536 floats, in the order the CPU uses."""

from __future__ import annotations

import triton
import triton.language as tl

from horovod_qoda.kernels.quantize import LARGEST

MAGNITUDE, SQUARES, RANGE = 0, 1, 2
"""What `reduce_spans` computes: max |v|; the sum of squares; minimum and maximum."""


@triton.jit
def halve(x, SPANS: tl.constexpr, WIDTH: tl.constexpr):
    """x[:, i] + x[:, i + WIDTH]: [SPANS, 2 * WIDTH] to [SPANS, WIDTH]."""
    return tl.sum(tl.reshape(x, [SPANS, 2, WIDTH]), axis=1)


@triton.jit
def reduce_spans(
    values, copy_to, span_at, span_to, span_n, results, n_spans,
    MODE: tl.constexpr, COPY: tl.constexpr, SPANS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """results[span] = the reduction as float64, or NaN where a value is not finite.

    Squares are summed in 16 lanes by index modulo 16, then lanes i and i + 8, 4, 2, 1; each square
    is exact in float64, so that fusing changes nothing.

    Args:
        values: any float type; copy_to: float32, written at span_to if COPY.
        results: float64 [n_spans, 2]; the second entry is used for RANGE.
    """
    span = tl.program_id(0) * SPANS + tl.arange(0, SPANS)
    there = span < n_spans
    at = tl.load(span_at + span, mask=there, other=0)
    n = tl.load(span_n + span, mask=there, other=0)
    lane = tl.arange(0, 16)[None, :]
    total = tl.zeros([SPANS, 16], tl.float64)
    first = tl.load(values + at, mask=n > 0, other=0.0).to(tl.float32)[:, None]
    low = tl.zeros([SPANS, 16], tl.float32) + first
    high = low
    bad = tl.zeros([SPANS, 16], tl.int32)
    for start in range(0, tl.max(n), 16 * UNROLL):
        for row in tl.static_range(UNROLL):
            i = start + row * 16 + lane
            mask = i < n[:, None]
            v = tl.load(values + at[:, None] + i, mask=mask, other=0.0).to(tl.float32)
            bad |= ((tl.abs(v) <= LARGEST) == 0).to(tl.int32)
            if COPY:
                to = tl.load(span_to + span, mask=there, other=0)[:, None]
                tl.store(copy_to + to + i, v, mask=mask)
            if MODE == 0:
                a = tl.abs(v)
                high = tl.where(a > high, a, high)
            elif MODE == 1:
                total += v.to(tl.float64) * v.to(tl.float64)
            else:
                low = tl.where(mask & (v < low), v, low)
                high = tl.where(mask & (v > high), v, high)
    finite = tl.max(bad, axis=1) == 0
    nan = float("nan")
    if MODE == 1:
        total = halve(total, SPANS, 8)
        total = halve(total, SPANS, 4)
        total = halve(total, SPANS, 2)
        result = tl.sum(total, axis=1)
    elif MODE == 0:
        result = tl.max(tl.abs(high), axis=1).to(tl.float64)
    else:
        result = tl.min(low, axis=1).to(tl.float64)
        highest = tl.max(high, axis=1).to(tl.float64)
        tl.store(results + 2 * span + 1, tl.where(finite, highest, nan), mask=there)
    tl.store(results + 2 * span, tl.where(finite, result, nan), mask=there)
