"""Bucket norms and kinds of segments, and the statistics of gradients."""

from __future__ import annotations

import numpy as np
import torch

from horovod_qoda.coding.payload import (
    KIND_CODED,
    KIND_NONFINITE,
    KIND_RAW,
    KIND_ZERO,
    LEVELS,
    MAXMIN,
    ONE_STREAM,
    RAW,
)
from horovod_qoda.kernels.coder import Coder
from horovod_qoda.kernels.geometry import Geometry, Spans
from horovod_qoda.kernels.spans import MAGNITUDE, RANGE, SQUARES, reduce_spans

_LEAST, _MOST = np.float32(2.0**-120), np.float32(2.0**120)
SPANS_EACH = 2  # of 16 lanes: one warp
UNROLL = 8  # loads in flight for each thread


def launch_spans(
    mode: int,
    values: torch.Tensor,
    span_at: torch.Tensor,
    span_n: torch.Tensor,
    results: torch.Tensor,
    copy_to: torch.Tensor | None = None,
    span_to: torch.Tensor | None = None,
) -> None:
    n = span_at.numel()
    if n == 0:
        return
    reduce_spans[(-(-n // SPANS_EACH),)](
        values,
        values if copy_to is None else copy_to,
        span_at,
        span_at if span_to is None else span_to,
        span_n,
        results,
        n,
        MODE=mode,
        COPY=copy_to is not None,
        SPANS=SPANS_EACH,
        UNROLL=UNROLL,
        num_warps=1,
        enable_fp_fusion=False,
    )


def find_sides(
    coder: Coder, geometry: Geometry, values: torch.Tensor, level_counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(side values, float32; whether each is finite). Blocks the host, where there are any."""
    n = int(geometry.side_at[-1])
    sides = np.zeros(n, np.float32)
    finite = np.ones(n, bool)
    if n == 0:
        return sides, finite
    waiting: list[tuple[Spans, np.ndarray]] = []
    for spans in geometry.spans:
        name = f"spans{spans.mode}"
        results = coder.memory.buffer(name, 2 * len(spans.at), torch.float64)
        there = geometry.device
        at, lengths = there[f"span_at{spans.mode}"], there[f"span_n{spans.mode}"]
        launch_spans(spans.mode, values, at, lengths, results)
        waiting.append((spans, coder.memory.download(name, results)))
    coder.memory.wait()
    for spans, found in waiting:
        _collect(spans, found.reshape(-1, 2), sides, finite)
    ranges = geometry.segments["quantizer"] == MAXMIN
    for row in np.flatnonzero(ranges):
        pairs = sides[geometry.side_at[row] : geometry.side_at[row + 1]].reshape(-1, 2)
        top = np.float32(2 * level_counts[geometry.segments["levels"][row]] - 1)
        with np.errstate(over="ignore"):
            pairs[:, 1] = (pairs[:, 1] - pairs[:, 0]) / top + np.float32(0)
        pairs[:, 0] += np.float32(0)
    return sides, finite


def _collect(spans: Spans, results: np.ndarray, sides: np.ndarray, finite: np.ndarray) -> None:
    """Results of spans to side values; those of a whole segment are joined in order."""
    first = np.flatnonzero(np.diff(spans.side, prepend=-1))
    place = spans.side[first]
    value = results[:, 0]
    finite[place] = np.logical_and.reduceat(np.isfinite(value), first)
    value = np.where(np.isfinite(value), value, 0.0)
    if spans.mode == MAGNITUDE:
        sides[place] = np.maximum.reduceat(value, first)
    elif spans.mode == RANGE:
        high = np.where(np.isfinite(results[:, 1]), results[:, 1], 0.0)
        sides[place] = np.minimum.reduceat(value, first)
        sides[place + 1] = np.maximum.reduceat(high, first)
    else:
        end = np.append(first[1:], len(value))
        total = value[first].copy()
        for k in np.flatnonzero(end - first > 1):
            total[k] = np.add.accumulate(value[first[k] : end[k]])[-1]
        with np.errstate(over="ignore"):
            sides[place] = np.sqrt(total).astype(np.float32)


def find_kinds(
    segments: np.ndarray, side_at: np.ndarray, sides: np.ndarray, finite: np.ndarray
) -> np.ndarray:
    """Kind of each segment, uint8.

    Raises:
        ValueError: a step that is no step, or values that are not finite in a segment with norms.
    """
    kinds = np.full(len(segments), KIND_CODED, np.uint8)
    q, step = segments["quantizer"], segments["step"]
    steps = q == ONE_STREAM
    wrong = steps & ~((step >= 0) & np.isfinite(step)) & (segments["nonfinite"] == 0)
    if wrong.any():
        raise ValueError(f"segment {np.flatnonzero(wrong)[0]}: step must be finite and >= 0")
    kinds[steps & (step == 0)] = KIND_ZERO
    kinds[steps & (step > 0) & ((step < _LEAST) | (step > _MOST))] = KIND_RAW
    kinds[q == RAW] = KIND_RAW
    rows = np.flatnonzero((q >= LEVELS) & (segments["nonfinite"] == 0))
    if len(rows):
        every = np.flatnonzero(q >= LEVELS)
        start = side_at[every]
        size = sides.copy()
        for row in np.flatnonzero(q == MAXMIN):  # minima are no sizes
            size[side_at[row] : side_at[row + 1] : 2] = 0
        largest = np.maximum.reduceat(size, start)
        zero = np.logical_and.reduceat(sides == 0, start)
        known = np.logical_and.reduceat(finite, start)
        bad = every[~known & (segments["nonfinite"][every] == 0)]
        if len(bad):
            raise ValueError(f"segment {bad[0]}: values hold NaN or Inf but nonfinite is 0")
        tiny = (largest > 0) & (largest < _LEAST)
        kinds[every[tiny | (largest > np.finfo(np.float32).max)]] = KIND_RAW
        kinds[every[zero]] = KIND_ZERO
    kinds[segments["nonfinite"] != 0] = KIND_NONFINITE
    return kinds


def span_statistics(
    coder: Coder, tensors: list[torch.Tensor], copies: list[torch.Tensor] | None
) -> list[tuple[float, bool]]:
    """(sum of squares, finite) of each tensor, in the order of `horovod_qoda.coding.copy_stats`."""
    waiting = []
    for i, tensor in enumerate(tensors):
        n = tensor.numel()
        at = np.arange(0, n, 65536, dtype=np.int64)
        there = coder.memory.upload(f"stats{i}", {"at": at, "n": np.minimum(n - at, 65536)})
        results = coder.memory.buffer(f"stats_results{i}", 2 * len(at), torch.float64)
        copy_to = None if copies is None else copies[i]
        launch_spans(SQUARES, tensor, there["at"], there["n"], results, copy_to, there["at"])
        waiting.append(coder.memory.download(f"stats_results{i}", results))
    coder.memory.wait()
    out = []
    for found in waiting:
        sums = found.reshape(-1, 2)[:, 0]
        total = float(np.add.accumulate(sums)[-1]) if len(sums) else 0.0
        out.append((total, bool(np.isfinite(sums).all())))
    return out
