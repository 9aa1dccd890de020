# mypy: disable-error-code="no-untyped-def"
"""Interleaved rANS (Duda, arXiv 1311.2540): one program, one warp, for each coding block.

32 lanes share one stream of words. Which lanes move a word in a row of 32 symbols is gathered into
one 32-bit number, by a sum of single bits; a lane's place among them is a count of the bits below.
"""

from __future__ import annotations

import triton
import triton.language as tl

from horovod_qoda.kernels import fields as f
from horovod_qoda.kernels.classes import id_bytes

STATE_LOW = tl.constexpr(65536)
TAIL_WORDS = tl.constexpr(30)
MOST_TAIL = tl.constexpr(1024)


@triton.jit
def popcount(x):
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def places(moves, lane):
    """(how many lanes before this one move a word, how many do in all); moves: bool [32]."""
    one = tl.full([32], 1, tl.uint32)
    bits = tl.sum(tl.where(moves, one << lane, 0).to(tl.uint32))
    return popcount(bits & ((one << lane) - 1)), popcount(bits)


@triton.jit
def push(x, freq, start, reciprocal):
    """x / freq * 4096 + x % freq + start, with reciprocal = min(floor(2^32 / freq), 2^32 - 1)."""
    q = tl.umulhi(x, reciprocal)  # the quotient, or one less
    r = x - q * freq
    over = r >= freq
    q = tl.where(over, q + 1, q)
    r = tl.where(over, r - freq, r)
    return (q << 12) + r + start


@triton.jit
def load_codes(codes, order, first, lane, m, CLASSES: tl.constexpr):
    i = first + lane
    at = i
    if CLASSES:
        row = tl.maximum(first, 0)
        at = (tl.load(order + row // 128) >> 2) * 128 + row % 128 + lane
    return tl.load(codes + at, mask=(i >= 0) & (i < m), other=0).to(tl.int32)


@triton.jit
def encode_row(x, at, code, order, first, lane, m, table, words, CLASSES: tl.constexpr):
    """Pushes symbols first .. first + 31, those in [0, m); words go in front of `at`."""
    if CLASSES:
        table += (tl.load(order + tl.maximum(first, 0) // 128) & 3) * 512
    i = first + lane
    valid = (i >= 0) & (i < m)
    entry = tl.load(table + code).to(tl.uint32, bitcast=True)
    reciprocal = tl.load(table + 256 + code).to(tl.uint32, bitcast=True)
    freq, start = entry & 0xFFFF, entry >> 16
    full = valid & (x >= (freq << 20))
    before, count = places(full, lane)
    at -= count
    tl.store(words + at + before, x.to(tl.uint16).to(tl.int16, bitcast=True), mask=full)
    x = tl.where(full, x >> 16, x)
    return tl.where(valid, push(x, freq, start, reciprocal), x), at


@triton.jit
def encode_tail(codes, order, n, tables, lane, CLASSES: tl.constexpr):
    """(initial states of the 32 lanes, number of symbols they hold)."""
    # Words in the order of the stream, ending at entry 29.
    tail_words = tl.zeros([32], tl.uint32)
    x = tl.full([1], 65536, tl.uint32)
    n_words = tl.zeros([1], tl.int32)
    count = 0
    limit = tl.minimum(n, MOST_TAIL)
    going = limit > 0
    while going:
        i = n - 1 - count
        table = tables
        if CLASSES:
            group = tl.load(order + i // 128)
            table += (group & 3) * 512
            i = (group >> 2) * 128 + i % 128
        code = tl.load(codes + i + tl.arange(0, 1)).to(tl.int32)
        entry = tl.load(table + code).to(tl.uint32, bitcast=True)
        reciprocal = tl.load(table + 256 + code).to(tl.uint32, bitcast=True)
        freq, start = entry & 0xFFFF, entry >> 16
        full = x >= (freq << 20)
        fits = (full & (n_words == TAIL_WORDS)) == 0
        moves = full & fits
        # A sum: Triton 3.7's interpreter takes no constant minus a tensor.
        tail_words = tl.where((lane + n_words == TAIL_WORDS - 1) & moves, x & 0xFFFF, tail_words)
        n_words += moves.to(tl.int32)
        x = tl.where(moves, x >> 16, x)
        x = tl.where(fits, push(x, freq, start, reciprocal), x)
        taken = tl.sum(fits.to(tl.int32))
        count += taken
        going = (taken > 0) & (count < limit)
    # Entry 30 - n_words goes to lane 2, and so on.
    source = tl.arange(0, 32)[None, :]
    chosen = source == lane[:, None] + (TAIL_WORDS - 2) - n_words[:, None]
    moved = tl.sum(tl.where(chosen, tail_words[None, :], 0).to(tl.uint32), axis=1)
    low = tl.where(lane == 0, x & 0xFFFF, tl.where(lane == 1, x >> 16, moved))
    return low + STATE_LOW, count


@triton.jit
def encode_streams(
    codes, order, places_of_blocks, block_type, tables, words, states, counters,
    CLASSES: tl.constexpr,
):  # fmt: skip
    """Streams of all blocks.

    Args:
        codes: uint8, symbols as codes.
        order: of `classes.order_groups`; not read where CLASSES is false: no type has several.
        tables: int32 [n_types, 4, 512]: start << 16 | frequency, then reciprocals.
        words: int16, as many as codes; a block's words end where its symbols end.
        states: int32 [n_blocks, 32].
        counters: N_WORDS and N_TAIL are written.
    """
    block = tl.program_id(0)
    place = places_of_blocks + block * f.PLACE
    if tl.load(place + f.MODE) != f.EMPTY:
        n = tl.load(place + f.SYMBOLS).to(tl.int32)
        symbol_at = tl.load(place + f.SYMBOL_AT)
        codes += symbol_at
        words += symbol_at
        table = tables + tl.load(block_type + block) * 2048
        order += block * 512
        lane = tl.arange(0, 32)
        x, tail = encode_tail(codes, order, n, table, lane, CLASSES)
        m = n - tail
        at = n
        row = ((m + 31) // 32 - 1) * 32
        # Four rows at a time, and the next four rows' codes on their way meanwhile.
        c0 = load_codes(codes, order, row, lane, m, CLASSES)
        c1 = load_codes(codes, order, row - 32, lane, m, CLASSES)
        c2 = load_codes(codes, order, row - 64, lane, m, CLASSES)
        c3 = load_codes(codes, order, row - 96, lane, m, CLASSES)
        while row >= 0:
            ahead = row - 128
            n0 = load_codes(codes, order, ahead, lane, m, CLASSES)
            n1 = load_codes(codes, order, ahead - 32, lane, m, CLASSES)
            n2 = load_codes(codes, order, ahead - 64, lane, m, CLASSES)
            n3 = load_codes(codes, order, ahead - 96, lane, m, CLASSES)
            x, at = encode_row(x, at, c0, order, row, lane, m, table, words, CLASSES)
            x, at = encode_row(x, at, c1, order, row - 32, lane, m, table, words, CLASSES)
            x, at = encode_row(x, at, c2, order, row - 64, lane, m, table, words, CLASSES)
            x, at = encode_row(x, at, c3, order, row - 96, lane, m, table, words, CLASSES)
            c0, c1, c2, c3 = n0, n1, n2, n3
            row = ahead
        tl.store(states + block * 32 + lane, x.to(tl.int32, bitcast=True))
        tl.store(counters + block * f.COUNTER + f.N_WORDS, n - at)
        tl.store(counters + block * f.COUNTER + f.N_TAIL, tail)


@triton.jit
def fill_slots(freq, starts, slots, WIDTH: tl.constexpr):
    """Decoding tables: (slot - start) << 20 | frequency << 8 | code for each of 4096 slots.

    Args:
        freq, starts: int32 [n_tables, 256]. A slot's code is the last that starts at or before it.
        slots: int32 [n_tables, 4096]. Grid: (n_tables, 4096 / WIDTH).
    """
    table = tl.program_id(0)
    slot = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    starts += table * 256
    code = tl.zeros([WIDTH], tl.int32)
    for bit in tl.static_range(8):
        higher = code + (128 >> bit)
        code = tl.where(slot >= tl.load(starts + higher), higher, code)
    width = tl.load(freq + table * 256 + code)
    entry = ((slot - tl.load(starts + code)) << 20) | (width << 8) | code
    tl.store(slots + table * 4096 + slot, entry)


@triton.jit
def count_zero_bytes(data, n):
    zeros = tl.zeros([256], tl.int32)
    for start in range(0, n, 256):
        i = start + tl.arange(0, 256)
        zeros += (tl.load(data + i, mask=i < n, other=1) == 0).to(tl.int32)
    return tl.sum(zeros)


@triton.jit
def decode_streams(
    payloads, payloads16, payloads32, jobs, slots, order, codes, floats, error, JOBS_EACH,
    CLASSES: tl.constexpr,
):  # fmt: skip
    """Codes of all blocks of all payloads; error[job / JOBS_EACH] = 1 for a malformed stream.

    Args:
        payloads, payloads16, payloads32: one buffer as uint8, int16 and int32.
        jobs: int64 [n_jobs, JOB]; lengths within the buffer, escapes and tail within the symbols.
        slots: of `fill_slots`.
        order: of `classes.order_sent_groups`; not read where CLASSES is false: no type has several.
        floats: int32 [n_jobs], receives how many escapes are floats, behind which low bits lie.
    """
    job_id = tl.program_id(0)
    job = jobs + job_id * f.JOB
    if tl.load(job + f.MODE) == f.STREAM:
        n = tl.load(job + f.SYMBOLS).to(tl.int32)
        n_escapes = tl.load(job + f.ESCAPES).to(tl.int32)
        tail = tl.load(job + f.TAIL).to(tl.int32)
        byte_at = tl.load(job + f.BYTE_AT)
        codes += tl.load(job + f.SYMBOL_AT)
        tables = slots + tl.load(job + f.TABLE) * 4096
        table = tables
        order += job_id * 512
        lane = tl.arange(0, 32)
        ids = 0
        if CLASSES:
            ids = tl.where(tl.load(job + f.CLASSES) > 1, id_bytes(n), 0)
        n_floats = count_zero_bytes(payloads + byte_at + 128 + ids, n_escapes)
        low_words = (n * tl.load(job + f.SHIFT).to(tl.int32) + 15) // 16
        skipped = 64 + ids // 2 + (n_escapes + 3) // 4 * 2 + n_floats * 2 + low_words
        n_words = tl.load(job + f.LENGTH).to(tl.int32) // 2 - skipped
        tl.store(floats + job_id, tl.where(n_words < 0, 0, n_floats))
        words = payloads16 + byte_at // 2 + skipped
        x = tl.load(payloads32 + byte_at // 4 + lane).to(tl.uint32, bitcast=True)
        wrong = (x < STATE_LOW).to(tl.int32)
        m = n - tail
        m = tl.where(n_words < 0, 0, m)
        at = 0
        zeros = tl.zeros([32], tl.int32)
        for row in range(0, m, 32):
            valid = row + lane < m
            to = row
            if CLASSES:
                group = tl.load(order + row // 128)
                table = tables + (group & 3) * 4096
                to = (group >> 2) * 128 + row % 128
            entry = tl.load(table + (x & 4095).to(tl.int32)).to(tl.uint32, bitcast=True)
            y = ((entry >> 8) & 0xFFF) * (x >> 12) + (entry >> 20)
            short = valid & (y < STATE_LOW)
            before, count = places(short, lane)
            there = short & (at + before < n_words)
            w = tl.load(words + at + before, mask=there, other=0)
            y = tl.where(short, (y << 16) | w.to(tl.uint16, bitcast=True).to(tl.uint32), y)
            x = tl.where(valid, y, x)
            at += count
            code = entry & 0xFF
            zeros += (valid & (code == 0)).to(tl.int32)
            tl.store(codes + to + lane, code.to(tl.uint8), mask=valid)
        wrong |= (at != n_words).to(tl.int32)
        wrong |= ((x >> 16) != 1).to(tl.int32)
        # The tail: one lane, whose state and words are the low halves of the 32 states.
        low = x & 0xFFFF
        first = tl.where(lane == 0, low, tl.where(lane == 1, low << 16, 0)).to(tl.uint32)
        y = tl.sum(first)
        wrong |= (y < STATE_LOW).to(tl.int32)
        next_lane = 2
        tail_zeros = 0
        for i in range(0, tl.where(n_words < 0, 0, tail)):
            to = m + i
            if CLASSES:
                group = tl.load(order + to // 128)
                table = tables + (group & 3) * 4096
                to = (group >> 2) * 128 + to % 128
            entry = tl.load(table + (y & 4095).to(tl.int32)).to(tl.uint32, bitcast=True)
            y = ((entry >> 8) & 0xFFF) * (y >> 12) + (entry >> 20)
            if y < STATE_LOW:
                w = tl.sum(tl.where(lane == next_lane, low, 0).to(tl.uint32))
                wrong |= tl.where(next_lane >= 32, 1, 0)
                y = (y << 16) | w
                next_lane += 1
            code = entry & 0xFF
            tail_zeros += (code == 0).to(tl.int32)
            tl.store(codes + to, code.to(tl.uint8))
        wrong |= (y != STATE_LOW).to(tl.int32)
        wrong |= ((lane >= next_lane) & (low != 0)).to(tl.int32)
        wrong |= (tl.sum(zeros) + tail_zeros != n_escapes).to(tl.int32)
        if tl.max(wrong) > 0:
            tl.store(error + job_id // JOBS_EACH, 1)
