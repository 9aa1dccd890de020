# mypy: disable-error-code="no-untyped-def"
"""A block's parts to their final place: states, escapes, low bits, words, padding."""

from __future__ import annotations

import triton
import triton.language as tl

from horovod_qoda.kernels import fields as f
from horovod_qoda.kernels.classes import id_bytes, pack_ids


@triton.jit
def pack_escapes(codes, exact, n, n_escapes, bytes_to, floats_to, TILE: tl.constexpr):
    """Escape bytes and floats in the order of symbols, and the zeros behind the bytes."""
    pad = tl.arange(0, 4)
    tl.store(bytes_to + n_escapes + pad, tl.zeros([4], tl.uint8), mask=pad < (-n_escapes & 3))
    e = 0
    e_float = 0
    for start in range(0, n, TILE):
        i = start + tl.arange(0, TILE)
        escaped = tl.load(codes + i, mask=i < n, other=1) == 0
        here = tl.sum(escaped.to(tl.int32))
        if here > 0:
            k = tl.load(exact + i, mask=escaped, other=0.0)
            large = escaped & (tl.abs(k) > 127.0)
            place = e + tl.cumsum(escaped.to(tl.int32), axis=0) - 1
            byte = tl.where(large, 0, tl.where(large, 0.0, k).to(tl.int32) + 128)
            tl.store(bytes_to + place, byte.to(tl.uint8), mask=escaped)
            place = e_float + tl.cumsum(large.to(tl.int32), axis=0) - 1
            tl.store(floats_to + place, k.to(tl.int32, bitcast=True), mask=large)
            e += here
            e_float += tl.sum(large.to(tl.int32))


@triton.jit
def pack_low_bits(codes, exact, n, shift, to, TILE: tl.constexpr):
    """The lowest `shift` (2 or 4) bits of every symbol, 0 for escapes; an even number of bytes."""
    each = 8 // shift
    for start in range(0, (n * shift + 15) // 16 * 2, TILE):
        at = start + tl.arange(0, TILE)
        byte = tl.zeros([TILE], tl.int32)
        for q in tl.static_range(4):
            i = at * each + q
            used = i < tl.where(q < each, n, 0)
            code = tl.load(codes + i, mask=used, other=0)
            coded = used & (code != 0)
            k = tl.load(exact + i, mask=coded, other=0.0).to(tl.int32)
            byte |= (k & ((1 << shift) - 1)) << (q * shift)
        tl.store(to + at, byte.to(tl.uint8), mask=at < (n * shift + 15) // 16 * 2)


@triton.jit
def pack_blocks(
    codes, exact, words, states, ids, places, body, body16, body32, TILE: tl.constexpr
):  # fmt: skip
    """Writes every block and its padding into the body.

    Args:
        ids: uint8 [n_blocks, 512], read where a block's type has several classes.
        places: int64 [n_blocks, PLACE].
        body, body16, body32: one buffer as uint8, int16 and int32.
    """
    block = tl.program_id(0)
    place = places + block * f.PLACE
    mode = tl.load(place + f.MODE)
    n = tl.load(place + f.SYMBOLS).to(tl.int32)
    symbol_at = tl.load(place + f.SYMBOL_AT)
    to = tl.load(place + f.BODY_AT)
    shift = tl.load(place + f.SHIFT).to(tl.int32)
    codes += symbol_at
    exact += symbol_at
    if mode == f.STREAM:
        lane = tl.arange(0, 32)
        tl.store(body32 + to // 4 + lane, tl.load(states + block * 32 + lane))
        n_escapes = tl.load(place + f.ESCAPES).to(tl.int32)
        n_floats = tl.load(place + f.FLOATS).to(tl.int32)
        escapes_at = to + 128
        if tl.load(place + f.N_CLASSES) > 1:
            pack_ids(ids + block * 512, n, body + escapes_at, 512)
            escapes_at += id_bytes(n)
        floats_at = escapes_at + (n_escapes + 3) // 4 * 4
        if n_escapes > 0:
            floats_to = body32 + floats_at // 4
            pack_escapes(codes, exact, n, n_escapes, body + escapes_at, floats_to, TILE)
        low_at = floats_at + 4 * n_floats
        if shift > 0:
            pack_low_bits(codes, exact, n, shift, body + low_at, TILE)
        n_words = tl.load(place + f.WORDS).to(tl.int32)
        words_to = body16 + low_at // 2 + (n * shift + 15) // 16
        words_from = words + symbol_at + n - n_words
        for start in range(0, n_words, TILE):
            i = start + tl.arange(0, TILE)
            tl.store(words_to + i, tl.load(words_from + i, mask=i < n_words), mask=i < n_words)
        end = words_to + n_words
        odd = (low_at // 2 + (n * shift + 15) // 16 + n_words) % 2
        tl.store(end, tl.full([], 0, tl.int16), mask=odd == 1)
    if mode == f.PLAIN:
        for start in range(0, n, TILE):
            i = start + tl.arange(0, TILE)
            code = tl.load(codes + i, mask=i < n, other=128).to(tl.int32)
            replaced = code * (shift == 0).to(tl.int32) == 0
            k = tl.load(exact + i, mask=(i < n) & replaced, other=0.0)
            k = tl.where(replaced, k, (code - 128).to(tl.float32))
            tl.store(body32 + to // 4 + i, k.to(tl.int32, bitcast=True), mask=i < n)


@triton.jit
def copy_pieces(values, body, piece_from, piece_to, piece_n, TILE: tl.constexpr):
    """Raw values, float32, into the body (as float32) in runs of at most TILE."""
    program = tl.program_id(0)
    i = tl.arange(0, TILE)
    mask = i < tl.load(piece_n + program)
    v = tl.load(values + tl.load(piece_from + program) + i, mask=mask)
    tl.store(body + tl.load(piece_to + program) + i, v, mask=mask)
