"""Where the pieces, tiles, buckets and samples of a chunk lie: from the layout, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

import horovod_qoda.native._codec as _codec
from horovod_qoda.coding.payload import KIND_CODED, LEVELS, RAW, SEGMENT
from horovod_qoda.kernels import fields as f
from horovod_qoda.kernels.spans import MAGNITUDE, RANGE, SQUARES

GROUPS = 16
"""Philox groups in a tile of quantise and dequantise: 2,048 coordinates, 16 for each of 128
threads. With 32 the kernels need more registers than a thread can have."""

SAMPLE_GROUPS = 16
BLOCK = 65536
GROUP = 128
RAW_RUN = 4096

Array = np.ndarray


@dataclass(frozen=True)
class Spans:
    """Runs of values to reduce: one bucket each, or 65,536 coordinates of a whole segment."""

    mode: int
    at: Array
    n: Array
    side: Array
    """Side value (pair) that each span belongs to, rising."""


@dataclass(frozen=True)
class Sample:
    """Groups of 128 from which the tables are estimated, by quantizer: piece and start of each,
    and the type slot of every SAMPLE_GROUPS of them."""

    piece: dict[int, Array]
    start: dict[int, Array]
    program_type: dict[int, Array]
    exact: Array
    """Per type: every group is in the sample."""
    coordinates: Array
    """Per type: coded coordinates."""


@dataclass
class Geometry:
    """A chunk's layout as tables for the kernels. Pieces of blocks come first, then segments that
    are raw by layout."""

    segments: Array
    types: Array
    block_type: Array
    piece_block: Array
    piece_segment: Array
    pieces: Array
    n_coded_pieces: int
    side_at: Array
    spans: list[Spans]
    device: dict[str, torch.Tensor] = field(default_factory=dict)
    _samples: dict[bytes, Sample] = field(default_factory=dict)

    @property
    def n_blocks(self) -> int:
        return len(self.block_type)

    @cached_property
    def block_at(self) -> Array:
        """First symbol of each block in the buffers of symbols, int64 [n_blocks + 1]."""
        numel = self.pieces[: self.n_coded_pieces, f.NUMEL.value]
        per_block = np.bincount(self.piece_block, numel, self.n_blocks).astype(np.int64)
        return np.concatenate([[0], np.cumsum(per_block)])

    @cached_property
    def tiles(self) -> dict[int, tuple[Array, Array]]:
        """Piece and start of each tile, by quantizer."""
        size = GROUPS * GROUP
        quantizer = self.segments["quantizer"][self.piece_segment]
        out = {}
        for q in np.unique(quantizer):
            chosen = np.flatnonzero(quantizer == q)
            count = -(-self.pieces[chosen, f.NUMEL.value] // size)
            first = np.repeat(np.cumsum(count) - count, count)
            start = (np.arange(count.sum()) - first) * size
            out[int(q)] = (np.repeat(chosen, count).astype(np.int64), start.astype(np.int64))
        return out

    def symbols_of(self, kinds: Array) -> tuple[Array, Array]:
        """(first symbol of each piece or -1, symbols in each block) for a payload's kinds."""
        coded = kinds[self.piece_segment[: self.n_coded_pieces]] == KIND_CODED
        numel = np.where(coded, self.pieces[: self.n_coded_pieces, f.NUMEL.value], 0)
        count = np.bincount(self.piece_block, numel, self.n_blocks).astype(np.int64)
        before = np.cumsum(numel) - numel
        first = np.cumsum(count) - count
        at = before - first[self.piece_block] + self.block_at[self.piece_block]
        out = np.full(len(self.pieces), -1, np.int64)
        out[: self.n_coded_pieces] = np.where(coded, at, -1)
        return out, count

    def sample(self, kinds: Array) -> Sample:
        """The sample of a payload with these kinds, the same as the CPU's."""
        key = kinds.tobytes()
        if key not in self._samples:
            if len(self._samples) > 64:
                self._samples.clear()
            self._samples[key] = _draw(self, kinds)
        return self._samples[key]


def _draw(geometry: Geometry, kinds: Array) -> Sample:
    n = geometry.n_coded_pieces
    numel = geometry.pieces[:n, f.NUMEL.value]
    segment = geometry.piece_segment[:n]
    slot = geometry.block_type[geometry.piece_block]
    exact = np.zeros(len(geometry.types), bool)
    coordinates = np.zeros(len(geometry.types), np.int64)
    out: dict[int, list[tuple[Array, Array, int]]] = {}
    for t in range(len(geometry.types)):
        rows = np.flatnonzero((slot == t) & (kinds[segment] == KIND_CODED))
        coordinates[t] = numel[rows].sum()
        groups = -(-numel[rows] // GROUP)
        total = int(groups.sum())
        if total == 0:
            continue
        stride = max(1, total // min(max(total // 8, 512), 1024))
        exact[t] = stride == 1
        i = np.arange(-(-total // stride), dtype=np.uint64)
        x = (i + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        drawn = i * np.uint64(stride) + (x ^ x >> np.uint64(29)) % np.uint64(stride)
        drawn = drawn[drawn < total].astype(np.int64)
        end = np.cumsum(groups)
        which = np.searchsorted(end, drawn, side="right")
        start = (drawn - (end - groups)[which]) * GROUP
        piece = rows[which]
        quantizer = geometry.segments["quantizer"][segment[piece]]
        for q in np.unique(quantizer):
            mine = quantizer == q
            out.setdefault(int(q), []).append((piece[mine], start[mine], t))
    pieces, starts, types = {}, {}, {}
    for q, parts in out.items():
        padded = [-(-len(piece) // SAMPLE_GROUPS) * SAMPLE_GROUPS for piece, _, _ in parts]
        pieces[q] = np.full(sum(padded), -1, np.int64)
        starts[q] = np.zeros(sum(padded), np.int64)
        programs = [room // SAMPLE_GROUPS for room in padded]
        types[q] = np.repeat([t for _, _, t in parts], programs).astype(np.int32)
        at = 0
        for (piece, start, _), room in zip(parts, padded, strict=True):
            pieces[q][at : at + len(piece)] = piece
            starts[q][at : at + len(piece)] = start
            at += room
    return Sample(pieces, starts, types, exact, coordinates)


def static_part(segments: Array) -> Array:
    """The rows without what changes from exchange to exchange."""
    rows = np.ascontiguousarray(segments, dtype=SEGMENT).copy()
    for name in ("step", "reconstruction", "nonfinite"):
        rows[name] = 0
    return rows


def make_geometry(segments: Array, n_values: int, levels: Sequence[Sequence[float]]) -> Geometry:
    """Tables of a chunk of ``n_values`` coordinates.

    Raises:
        ValueError: a segment breaks its contract.
    """
    plan = _codec.plan(segments, n_values, [list(s) for s in levels])
    raw = np.flatnonzero(segments["quantizer"] == RAW)
    piece_segment = np.concatenate([plan["piece_segment"].astype(np.int64), raw])
    numel = segments["numel"].astype(np.int64)
    start = np.concatenate([plan["piece_start"].astype(np.int64), np.zeros(len(raw), np.int64)])
    n_coded = len(plan["piece_segment"])
    pieces = np.zeros((len(piece_segment), f.PIECE.value), np.int64)
    rows = segments[piece_segment]
    pieces[:, f.VALUE_AT.value] = rows["offset"].astype(np.int64) + start
    pieces[:, f.SEGMENT.value] = piece_segment
    pieces[:n_coded, f.BLOCK.value] = plan["piece_block"]
    pieces[:, f.START.value] = start
    pieces[:, f.NUMEL.value] = np.concatenate([plan["piece_numel"].astype(np.int64), numel[raw]])
    pieces[:, f.GROUP.value] = (rows["index"].astype(np.int64) + start) // GROUP
    pieces[:, f.LAYER.value] = rows["layer"]
    side_at = plan["side_at"].astype(np.int64)
    pieces[:, f.SIDE_AT.value] = side_at[piece_segment]
    bucket = rows["bucket"].astype(np.float64)
    pieces[:, f.BUCKET_BITS.value] = np.where(bucket > 0, np.log2(np.maximum(bucket, 1)), 63)
    pieces[:, f.SEQUENCE.value] = rows["levels"]
    return Geometry(
        segments=segments,
        types=plan["types"],
        block_type=plan["block_type"].astype(np.int64),
        piece_block=plan["piece_block"].astype(np.int64),
        piece_segment=piece_segment,
        pieces=pieces,
        n_coded_pieces=n_coded,
        side_at=side_at,
        spans=_find_spans(segments, side_at),
    )


def _find_spans(segments: Array, side_at: Array) -> list[Spans]:
    found: dict[int, list[tuple[Array, Array, Array]]] = {}
    for row in np.flatnonzero(segments["quantizer"] >= LEVELS):
        s = segments[row]
        is_levels = s["quantizer"] == LEVELS
        mode = (SQUARES if s["norm"] else MAGNITUDE) if is_levels else RANGE
        numel, bucket = int(s["numel"]), int(s["bucket"])
        at = np.arange(0, numel, bucket or BLOCK)
        n = np.minimum(numel - at, bucket or BLOCK)
        side = np.arange(len(at)) if bucket else np.zeros(len(at), np.int64)
        side = side_at[row] + side * (1 if is_levels else 2)
        found.setdefault(mode, []).append((int(s["offset"]) + at, n, side))
    return [
        Spans(mode, *(np.concatenate(c).astype(np.int64) for c in zip(*parts, strict=True)))
        for mode, parts in found.items()
    ]
