# mypy: disable-error-code="no-untyped-def"
"""Symbols of one or several payloads to the sum of their values."""

from __future__ import annotations

import triton
import triton.language as tl

from horovod_qoda.kernels import fields as f
from horovod_qoda.kernels.classes import id_bytes
from horovod_qoda.kernels.philox import tile_coordinates, tile_uniforms
from horovod_qoda.kernels.quantize import LARGEST, find_bucket


@triton.jit
def spread_escapes(payloads, payloads32, jobs, codes, exact, error, JOBS_EACH, TILE: tl.constexpr):
    """Puts escaped symbols where their coordinates are; fills plain and certain blocks.

    Args:
        exact: float32, written where the code is 0.
    """
    job_id = tl.program_id(0)
    job = jobs + job_id * f.JOB
    mode = tl.load(job + f.MODE)
    n = tl.load(job + f.SYMBOLS).to(tl.int32)
    symbol_at = tl.load(job + f.SYMBOL_AT)
    codes += symbol_at
    exact += symbol_at
    byte_at = tl.load(job + f.BYTE_AT)
    n_escapes = tl.load(job + f.ESCAPES).to(tl.int32)
    wrong = tl.zeros([TILE], tl.int32)
    if mode == f.CERTAIN:
        for start in range(0, n, TILE):
            i = start + tl.arange(0, TILE)
            code = tl.load(job + f.TABLE).to(tl.uint8) + tl.zeros([TILE], tl.uint8)
            tl.store(codes + i, code, mask=i < n)
    if mode == f.PLAIN:
        for start in range(0, n, TILE):
            i = start + tl.arange(0, TILE)
            k = tl.load(payloads32 + byte_at // 4 + i, mask=i < n, other=0)
            k = k.to(tl.float32, bitcast=True)
            wrong |= ((tl.abs(k) <= LARGEST) == 0).to(tl.int32)
            tl.store(codes + i, tl.zeros([TILE], tl.uint8), mask=i < n)
            tl.store(exact + i, k, mask=i < n)
    if (mode == f.STREAM) & (n_escapes > 0):
        before = 128 + tl.where(tl.load(job + f.CLASSES) > 1, id_bytes(n), 0)
        bytes_from = payloads + byte_at + before
        before += (n_escapes + 3) // 4 * 4
        floats_from = payloads32 + (byte_at + before) // 4
        # What is left of the block: the stream's decoder has said if the floats do not fit.
        most_floats = (tl.load(job + f.LENGTH).to(tl.int32) - before) // 4
        e = 0
        e_float = 0
        for start in range(0, n, TILE):
            i = start + tl.arange(0, TILE)
            escaped = tl.load(codes + i, mask=i < n, other=1) == 0
            here = tl.sum(escaped.to(tl.int32))
            if here > 0:
                place = e + tl.cumsum(escaped.to(tl.int32), axis=0) - 1
                inside = escaped & (place < n_escapes)
                byte = tl.load(bytes_from + place, mask=inside, other=128).to(tl.int32)
                large = inside & (byte == 0)
                place = e_float + tl.cumsum(large.to(tl.int32), axis=0) - 1
                inside = large & (place < most_floats)
                big = tl.load(floats_from + place, mask=inside, other=0).to(
                    tl.float32, bitcast=True
                )
                wrong |= (large & ((tl.abs(big) <= LARGEST) == 0)).to(tl.int32)
                k = tl.where(large, big, (byte - 128).to(tl.float32))
                tl.store(exact + i, k, mask=escaped)
                e += here
                e_float += tl.sum(large.to(tl.int32))
    if tl.max(wrong) > 0:
        tl.store(error + job_id // JOBS_EACH, 1)


@triton.jit
def value_of(
    k, step, dithered, mask, start, local, piece, sides, levels, level_counts, group, call, error,
    QUANTIZER: tl.constexpr,
):  # fmt: skip
    """What the symbol k stands for (docs/wire-format.md, "From symbols to values")."""
    if QUANTIZER == 1:
        value = k * step
        if dithered != 0:
            layer = tl.load(piece + f.LAYER).to(tl.uint32)
            value = (k + (0.5 - tile_uniforms(group, layer, call))) * step
        return value
    bucket = find_bucket(piece, start, local, QUANTIZER)
    sequence = tl.load(piece + f.SEQUENCE)
    count = tl.load(level_counts + sequence)
    whole = k == tl.floor(k)
    if QUANTIZER == 3:
        low = tl.load(sides + bucket, mask=mask, other=0.0)
        unit = tl.load(sides + bucket + 1, mask=mask, other=0.0)
        q = k + count.to(tl.float32)
        known = whole & (q >= 0) & (q <= (2 * count - 1).to(tl.float32)) & (tl.abs(k) <= 127.0)
        value = q * unit + low
    else:
        norm = tl.load(sides + bucket, mask=mask, other=0.0)
        known = whole & (tl.abs(k) <= (count - 1).to(tl.float32))
        index = tl.where(known, tl.abs(k), 0.0).to(tl.int32)
        level = tl.load(levels + sequence * 128 + index)
        value = tl.where(k < 0, 0.0 - level, level) * norm
    if tl.sum(tl.ravel((mask & (known == 0)).to(tl.int32))) > 0:
        tl.store(error, 1)
    return value


@triton.jit
def sum_tiles(
    out, codes, exact, payloads, payloads_f32, tile_piece, tile_start, pieces, sources, floats,
    kinds, steps, raw_at, dithered, sides, calls, levels, level_counts, error, scale,
    n_payloads, n_pieces, n_blocks, n_segments, n_sides,
    QUANTIZER: tl.constexpr, ADD: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """out = (out if ADD) + scale * each payload's values, in the order of payloads.

    Args:
        sources: int64 [n_payloads, n_pieces, SOURCE].
        floats: int32 [n_payloads, n_blocks], of `decode_streams`; read where there are low bits.
        kinds (int32), steps (float32), raw_at (int64, in floats): [n_payloads, n_segments].
        sides: float32 [n_payloads, n_sides].
        dithered: int32 [n_segments].
        calls: int32 [n_payloads, 8], for `word`.
    """
    tile = tl.program_id(0)
    piece_id = tl.load(tile_piece + tile)
    start = tl.load(tile_start + tile)
    piece = pieces + piece_id * f.PIECE
    segment = tl.load(piece + f.SEGMENT)
    i = tile_coordinates(GROUPS)
    mask = i < tl.minimum(tl.load(piece + f.NUMEL) - start, GROUPS * 128).to(tl.int32)
    group = (tl.load(piece + f.GROUP) + start // 128).to(tl.uint32) + tl.arange(0, GROUPS)
    group = group.to(tl.uint32)
    to = out + (tl.load(piece + f.VALUE_AT) + start) + i
    if ADD:
        total = tl.load(to, mask=mask, other=0.0)
    else:
        total = tl.zeros([GROUPS, 16, 8], tl.float32)
    for p in range(0, n_payloads):
        kind = tl.load(kinds + p * n_segments + segment)
        value = tl.zeros([GROUPS, 16, 8], tl.float32)
        if kind == f.CODED:
            if QUANTIZER != 0:
                source = sources + (p * n_pieces + piece_id) * f.SOURCE
                code_at = tl.load(source + f.CODE_AT) + start
                code = tl.load(codes + code_at + i, mask=mask, other=128).to(tl.int32)
                bits = tl.load(source + f.LOW_BITS).to(tl.int32)
                k = code - 128
                if bits > 0:
                    n_floats = tl.load(floats + p * n_blocks + tl.load(piece + f.BLOCK))
                    bit_at = tl.load(source + f.LOW_BIT_AT) + 32 * n_floats + start * bits
                    within = (bit_at & 7).to(tl.int32) + i * bits
                    low_from = payloads + (bit_at >> 3) + (within >> 3)
                    byte = tl.load(low_from, mask=mask, other=0).to(tl.int32)
                    low = (byte >> (within & 7)) & ((1 << bits) - 1)
                    k = (k << bits) + low
                big = tl.load(exact + code_at + i, mask=mask & (code == 0), other=0.0)
                symbol = tl.where(code == 0, big, k.to(tl.float32))
                step = tl.load(steps + p * n_segments + segment)
                value = scale * value_of(
                    symbol, step, tl.load(dithered + segment), mask, start, i, piece,
                    sides + p * n_sides, levels, level_counts, group, calls + p * 8, error + p,
                    QUANTIZER,
                )  # fmt: skip
        if kind == f.RAW:
            raw = tl.load(raw_at + p * n_segments + segment)
            raw_from = payloads_f32 + (raw + tl.load(piece + f.START) + start) + i
            value = scale * tl.load(raw_from, mask=mask, other=0.0)
        if kind == f.NONFINITE:
            value += float("nan")
        # Adding the zeros of a segment that is all zero would turn -0 into 0.
        if (p == 0) & (ADD == 0):
            total = value
        elif kind != f.ZERO:
            total += value
    tl.store(to, total, mask=mask)
