# mypy: disable-error-code="no-untyped-def"
"""Symbol counts: of the sample from which tables are chosen, and of everything.

The sample's counts of a type are 32 rows of 256: codes by the size of their group (rows 0 to 28),
codes for the shifts 2 and 4 (rows 29 and 30), and the groups of each size (row 31).
"""

from __future__ import annotations

import triton
import triton.language as tl

from horovod_qoda.kernels import fields as f
from horovod_qoda.kernels.classes import size_bin
from horovod_qoda.kernels.philox import tile_uniforms
from horovod_qoda.kernels.quantize import symbols

SHIFTED = tl.constexpr(29)


@triton.jit
def count_codes(counts, k, mask):
    """Adds the codes of k (any shape) to counts [256]; |k| > 127 and NaN count as code 0."""
    small = tl.abs(k) <= 127.0
    code = tl.where(mask & small, k, tl.where(mask, -128.0, 0.0)).to(tl.int32) + 128
    found = tl.histogram(tl.ravel(code), 256)
    # Masked elements were counted as symbol 0.
    absent = tl.sum(tl.ravel((mask == 0).to(tl.int32)))
    bins = tl.arange(0, 256)
    found -= tl.where(bins == 128, absent, 0)
    tl.atomic_add(counts + bins, found, mask=found > 0)


@triton.jit
def count_by_size(counts, k, mask, there):
    """Adds the codes of groups k [groups, 16, 8] to the rows of their sizes."""
    code = tl.where(mask & (tl.abs(k) <= 127.0), k, tl.where(mask, -128.0, 0.0)).to(tl.int32) + 128
    size = tl.sum(tl.sum(tl.abs(code - 128), axis=2), axis=1)
    n = tl.sum(tl.sum(mask.to(tl.int32), axis=2), axis=1)
    row = size_bin(size, tl.maximum(n, 1))
    tl.atomic_add(counts + 31 * 256 + row, 1, mask=there)
    tl.atomic_add(counts + row[:, None, None] * 256 + code, 1, mask=mask)


@triton.jit
def count_sample(
    values, counts, program_type, group_piece, group_start, pieces, call, inverse, sides,
    levels, inverse_gaps, level_counts, QUANTIZER: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Counts of GROUPS sampled groups of one type.

    Args:
        counts: int32 [n_types, 32, 256].
        program_type: type slot of each program's groups.
        group_piece, group_start: int64 per sampled group; piece -1 for padding.
    """
    program = tl.program_id(0)
    at = program * GROUPS + tl.arange(0, GROUPS)
    piece_id = tl.load(group_piece + at)
    start = tl.load(group_start + at)
    there = piece_id >= 0
    piece = pieces + piece_id * f.PIECE
    lane = tl.arange(0, 16)[None, :, None]
    i = start[:, None, None] + tl.arange(0, 8)[None, None, :] * 16 + lane
    mask = i < tl.load(piece + f.NUMEL, mask=there, other=0)[:, None, None]
    value_at = tl.load(piece + f.VALUE_AT, mask=there, other=0)
    v = tl.load(values + value_at[:, None, None] + i, mask=mask, other=0.0)
    group = (tl.load(piece + f.GROUP, mask=there, other=0) + start // 128).to(tl.uint32)
    layer = tl.load(piece + f.LAYER, mask=there, other=0).to(tl.uint32)
    u = tile_uniforms(group, layer[:, None], call)
    coordinate = tl.load(piece + f.START, mask=there, other=0)[:, None, None] + i
    bits = tl.load(piece + f.BUCKET_BITS, mask=there, other=63)[:, None, None]
    side_at = tl.load(piece + f.SIDE_AT, mask=there, other=0)[:, None, None]
    each: tl.constexpr = 2 if QUANTIZER == 3 else 1
    k = symbols(
        v, u, mask,
        tl.load(piece + f.SEGMENT, mask=there, other=0)[:, None, None],
        side_at + (coordinate >> bits) * each,
        tl.load(piece + f.SEQUENCE, mask=there, other=0)[:, None, None],
        inverse, sides, levels, inverse_gaps, level_counts, QUANTIZER,
    )  # fmt: skip
    row = counts + tl.load(program_type + program) * 8192
    count_by_size(row, k, mask, there)
    count_codes(row + SHIFTED * 256, tl.floor(k * 0.25), mask)
    count_codes(row + (SHIFTED + 1) * 256, tl.floor(k * 0.0625), mask)


@triton.jit
def count_all(codes, exact, places, block_type, counts, TILE: tl.constexpr):
    """Exact counts [n_types, 256] of a block's symbols: of k, not of codes."""
    block = tl.program_id(0)
    place = places + block * f.PLACE
    n = tl.load(place + f.SYMBOLS)
    at = tl.load(place + f.SYMBOL_AT)
    shift = tl.load(place + f.SHIFT)
    row = counts + tl.load(block_type + block) * 256
    for start in range(0, n, TILE):
        i = start + tl.arange(0, TILE)
        mask = i < n
        code = tl.load(codes + at + i, mask=mask, other=128).to(tl.int32)
        k = (code - 128).to(tl.float32)
        replaced = code * (shift == 0).to(tl.int32) == 0
        k = tl.where(replaced, tl.load(exact + at + i, mask=mask & replaced, other=0.0), k)
        count_codes(row, k, mask)
