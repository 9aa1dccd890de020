# mypy: disable-error-code="no-untyped-def"
"""Floats to symbols. Every operation is one IEEE float32 operation, as on the CPU.

Launch with ``enable_fp_fusion=False``: a fused multiply-add would change symbols.
"""

from __future__ import annotations

import triton
import triton.language as tl

from horovod_qoda.kernels import fields as f
from horovod_qoda.kernels.philox import tile_coordinates, tile_uniforms

LARGEST = tl.constexpr(3.4028234663852886e38)


@triton.jit
def find_level(r, level, last):
    """The largest j <= last with level[j] <= r, by halving; rows of `level` have 128 entries."""
    j = tl.zeros_like(r).to(tl.int32)
    for bit in tl.static_range(7):
        higher = j + (64 >> bit)
        inside = higher <= last
        up = inside & (r >= tl.load(level + higher, mask=inside, other=2.0))
        j = tl.where(up, higher, j)
    return j


@triton.jit
def find_bucket(piece, start, local, QUANTIZER: tl.constexpr):
    """Side value (pair) of the coordinate start + local of a piece.

    Pieces and tiles start at multiples of 1024 coordinates, and so of the bucket size.
    """
    bits = tl.load(piece + f.BUCKET_BITS)
    before = (tl.load(piece + f.START) + start) >> bits
    within = local >> tl.minimum(bits, 31).to(tl.int32)
    each: tl.constexpr = 2 if QUANTIZER == 3 else 1
    return tl.load(piece + f.SIDE_AT) + before * each + within * each


@triton.jit
def symbols(
    v, u, mask, segment, bucket, sequence,
    inverse, sides, levels, inverse_gaps, level_counts, QUANTIZER: tl.constexpr,
):  # fmt: skip
    """k as float32.

    Args:
        segment, sequence: of the piece; scalars, or of v's rank.
        bucket: where the side value (pair) of each v is.
        inverse: 1 / step for every segment.
        levels, inverse_gaps: [n_sequences, 128] with level_counts entries in use.
    """
    if QUANTIZER == 1:
        return tl.floor(v * tl.load(inverse + segment) + u)
    count = tl.load(level_counts + sequence)
    if QUANTIZER == 3:
        low = tl.load(sides + bucket, mask=mask, other=0.0)
        unit = tl.load(sides + bucket + 1, mask=mask, other=0.0)
        q = tl.floor(tl.div_rn(v - low, tl.where(unit > 0, unit, 1.0)) + u)
        q = tl.where(unit > 0, q, 0.0)
        # Not tl.minimum: a NaN must come out as an escape that is not finite.
        highest = (2 * count - 1).to(tl.float32)
        return tl.where(q > highest, highest, q) - count.to(tl.float32)
    norm = tl.load(sides + bucket, mask=mask, other=0.0)
    r = tl.div_rn(tl.abs(v), tl.where(norm > 0, norm, 1.0))
    r = tl.where(norm > 0, tl.where(r > 1.0, 1.0, r), 0.0)
    row = sequence * 128
    j = find_level(r, levels + row, count - 2)
    up = (r - tl.load(levels + row + j)) * tl.load(inverse_gaps + row + j)
    k = (j + (u < up).to(tl.int32)).to(tl.float32)
    return tl.where(v < 0, 0.0 - k, k)


@triton.jit
def quantize_tiles(
    values, codes, exact, counters, bad, tile_piece, tile_start, pieces, code_at, coding,
    block_type, call, inverse, sides, levels, inverse_gaps, level_counts,
    QUANTIZER: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """One tile of GROUPS * 128 coordinates of a piece: codes, and k itself behind code 0.

    Args:
        codes: uint8, at code_at of the piece.
        exact: float32, written where the code is 0, everywhere where low bits are sent.
        counters: int32 [n_blocks, COUNTER]; escapes and floats are added.
        bad: int32 per segment; 1 where a symbol is not finite.
        code_at: int64 per piece, -1 for pieces that are not coded.
        coding: int32 [n_types, 3]: lowest and highest h that the table has, shift.
    """
    tile = tl.program_id(0)
    piece_id = tl.load(tile_piece + tile)
    to = tl.load(code_at + piece_id)
    if to >= 0:
        start = tl.load(tile_start + tile)
        piece = pieces + piece_id * f.PIECE
        segment = tl.load(piece + f.SEGMENT)
        block = tl.load(piece + f.BLOCK)
        to += start
        i = tile_coordinates(GROUPS)
        mask = i < tl.minimum(tl.load(piece + f.NUMEL) - start, GROUPS * 128).to(tl.int32)
        v = tl.load(values + (tl.load(piece + f.VALUE_AT) + start) + i, mask=mask, other=0.0)
        group = (tl.load(piece + f.GROUP) + start // 128).to(tl.uint32) + tl.arange(0, GROUPS)
        u = tile_uniforms(group.to(tl.uint32), tl.load(piece + f.LAYER).to(tl.uint32), call)
        k = symbols(
            v, u, mask, segment, find_bucket(piece, start, i, QUANTIZER),
            tl.load(piece + f.SEQUENCE),
            inverse, sides, levels, inverse_gaps, level_counts, QUANTIZER,
        )  # fmt: skip
        row = coding + tl.load(block_type + block) * 3
        shift = tl.load(row + 2)
        h = tl.floor(k * ((127 - shift) << 23).to(tl.float32, bitcast=True))  # k / 2^shift
        low, high = tl.load(row).to(tl.float32), tl.load(row + 1).to(tl.float32)
        inside = (h >= low) & (h <= high)
        code = tl.where(inside, h, -128.0).to(tl.int32) + 128
        tl.store(codes + to + i, code.to(tl.uint8), mask=mask)
        escaped = mask & (code == 0)
        # Where low bits are sent, every k is needed.
        replaced = code * (shift == 0).to(tl.int32) == 0
        tl.store(exact + to + i, k, mask=mask & replaced)
        n_escapes = tl.sum(tl.ravel(escaped.to(tl.int32)))
        if n_escapes > 0:
            large = escaped & ((tl.abs(k) <= 127.0) == 0)
            finite = tl.abs(k) <= LARGEST
            tl.atomic_add(counters + block * f.COUNTER + f.N_ESCAPES, n_escapes)
            n_floats = tl.sum(tl.ravel(large.to(tl.int32)))
            tl.atomic_add(counters + block * f.COUNTER + f.N_FLOATS, n_floats)
            n_bad = tl.sum(tl.ravel((escaped & (finite == 0)).to(tl.int32)))
            tl.atomic_max(bad + segment, (n_bad > 0).to(tl.int32))
