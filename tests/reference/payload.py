"""The payload (docs/wire-format.md). Segments are rows of `horovod_qoda.coding.SEGMENT`."""

from __future__ import annotations

import struct

import numpy as np

from tests.reference.quantizers import (
    BLOCK,
    F32,
    bucket_size,
    dequantize,
    quantize,
    side_values,
    uniforms,
)
from tests.reference.rans import (
    choose_classes,
    coded_bits,
    count_codes,
    decode_block,
    encode_block,
    normalize,
    pad4,
    serialize,
)

GROUP = 128
ZERO, CODED, RAW, NONFINITE = range(4)
MIN_STEP, MAX_STEP = F32(2.0**-120), F32(2.0**120)


def crc32c(data, crc=0):
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _crc_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC = _crc_table()


def plan_blocks(segments):
    """[(type, [blocks])], a block being a list of (segment, start, numel)."""
    types, room = [], 0
    for row, s in enumerate(segments):
        if s["quantizer"] == 0:
            continue
        if not types or types[-1][0] != s["type"]:
            types.append((s["type"], [[]]))
            room = BLOCK
        start, numel = 0, int(s["numel"])
        while start < numel:
            take = numel - start if numel - start <= room else room // 1024 * 1024
            if take == 0:
                types[-1][1].append([])
                room = BLOCK
                continue
            types[-1][1][-1].append((row, start, take))
            start, room = start + take, room - take
    return types


def kinds_and_sides(values, segments, levels):
    kinds, sides = [], []
    for s in segments:
        v = values[int(s["offset"]) : int(s["offset"] + s["numel"])]
        side = np.zeros(0, dtype=F32)
        kind = CODED
        if s["nonfinite"]:
            kind = NONFINITE
        elif s["quantizer"] == 0:
            kind = RAW
        elif s["quantizer"] == 1:
            kind = ZERO if s["step"] == 0 else CODED
            kind = RAW if 0 < s["step"] < MIN_STEP or s["step"] > MAX_STEP else kind
        else:
            side = side_values(v, s, levels)
            size = side[1::2] if s["quantizer"] == 3 else side
            if not side.any():
                kind = ZERO
            elif 0 < size.max() < MIN_STEP or not np.isfinite(size.max()):
                kind = RAW
        kinds.append(kind)
        sides.append(side)
    return kinds, sides


def jitter(i, stride):
    x = (i + 1) * 0x9E3779B97F4A7C15 % 2**64
    return (x ^ x >> 29) % stride


def choose_table(symbols, run_type, book):
    """(kind byte, table of each class, class of each size, shift) from the symbols of each coded
    piece of a type."""
    groups = [k[at : at + GROUP] for k in symbols for at in range(0, len(k), GROUP)]
    if not groups:
        return 0, [None], None, 0
    stride = max(1, len(groups) // min(max(len(groups) // 8, 512), 1024))
    drawn = range(-(-len(groups) // stride))
    picked = [i * stride + jitter(i, stride) for i in drawn]
    picked = [groups[i] for i in picked if i < len(groups)]
    sample = np.concatenate(picked)
    scale = sum(len(k) for k in symbols) / len(sample)
    counts = count_codes(sample)
    freq, shift = normalize(counts, exact=stride == 1), 0
    bits = coded_bits(freq, counts) * scale
    if counts[0] > 0.001 * len(sample):
        for s in (2, 4):
            shifted = count_codes(sample, s)
            candidate = normalize(shifted, exact=False)
            candidate_bits = (coded_bits(candidate, shifted) + s * len(sample)) * scale
            if candidate_bits < bits:
                freq, shift, bits = candidate, s, candidate_bits
    found, table_bits = None, 8 * len(serialize(freq))
    if shift == 0:
        codes = [np.where(np.abs(k) <= 127, k + 128, 0).astype(int) for k in picked]
        found = choose_classes(codes, freq, scale, 0.99 * (bits + table_bits))
    if found is not None:
        bits, table_bits = found[2] * scale, 8 * len(serialize(*found[0]))
    if book is not None and run_type < len(book.tables) and book.tables[run_type].any():
        agreed = [int(f) for f in book.tables[run_type]]
        if agreed[0] and coded_bits(agreed, counts) * scale <= bits + table_bits:
            return 2, [agreed], None, 0
    if found is not None:
        return 3, *found[:2], 0
    return 1 | shift << 4, [freq], None, shift


def mode_byte(s):
    q = int(s["quantizer"])
    return q | (s["reconstruction"] << 2 if q == 1 else 0) | (s["norm"] << 3 if q == 2 else 0)


def levels_crc(levels):
    crc = 0
    for sequence in levels:
        data = struct.pack("<I", len(sequence)) + np.asarray(sequence, dtype="<f4").tobytes()
        crc = crc32c(data, crc)
    return crc


def encode(values, segments, header, book=None, levels=()):
    """The payload's bytes."""
    kinds, sides = kinds_and_sides(values, segments, levels)

    def symbols(row, start, n):
        s = segments[row]
        v = values[int(s["offset"]) + start :][:n]
        return quantize(v, s, sides[row], levels, uniforms(header, s, start, n), start)

    records, meta = b"", b""
    for s, kind in zip(segments, kinds, strict=True):
        step = s["step"] if kind == CODED and s["quantizer"] == 1 else 0.0
        bucketed = s["quantizer"] >= 2
        log_bucket = int(s["bucket"]).bit_length() - 1 if bucketed and s["bucket"] else 0
        count = len(levels[s["levels"]]) if bucketed else 0
        records += struct.pack("<f4B", step, kind, mode_byte(s), log_bucket, count)
    for kind, side in zip(kinds, sides, strict=True):
        meta += side.astype("<f4").tobytes() if kind == CODED else b""
    blocks = []
    for run_type, run in plan_blocks(segments):
        k = [[symbols(*p) for p in block if kinds[p[0]] == CODED] for block in run]
        symbols_of_type = [x for pieces in k for x in pieces]
        kind, freqs, class_of_bin, shift = choose_table(symbols_of_type, run_type, book)
        meta += bytes([kind]) + (bytes([len(freqs)]) if kind == 3 else b"")
        meta += serialize(*freqs) if kind & 15 in (1, 3) else b""
        for pieces in k:
            joined = np.concatenate([np.zeros(0, dtype=F32), *pieces])
            blocks.append(encode_block(joined, freqs, class_of_bin, shift))
    raw = b"".join(
        values[int(s["offset"]) : int(s["offset"] + s["numel"])].astype("<f4").tobytes()
        for s, kind in zip(segments, kinds, strict=True)
        if kind == RAW
    )
    blocks += [(raw[at : at + 4 * BLOCK], 0) for at in range(0, len(raw), 4 * BLOCK)]
    meta = pad4(meta)
    for data, info in blocks:
        meta += struct.pack("<III", len(data), info, crc32c(pad4(data)))
    body = b"".join(pad4(data) for data, _ in blocks)
    meta_bytes = 112 + len(records) + len(meta)
    head = struct.pack(
        "<IHHQQQQQQIIIIIIdddI",
        *(0x41444F51, 2, 112, meta_bytes + len(body), header.layout_hash, header.exchange),
        *(header.key, book.hash if book else header.book_hash, int(segments["numel"].sum())),
        *(header.rank, header.chunk, header.stage, len(segments), len(blocks)),
        *(levels_crc(levels), header.sum_sq, header.sum_sq_diff, header.aux, meta_bytes),
    )
    crc = crc32c(records + meta, crc32c(head))
    return head + struct.pack("<I", crc) + records + meta + body


def decode(payload, segments, header, book=None, levels=()):
    """Float32 values [sum of numel], segment after segment. Trusts the payload."""
    at = 112
    kinds, steps, sides = [], [], []
    for _ in segments:
        step, kind = struct.unpack_from("<fB", payload, at)
        steps.append(F32(step))
        kinds.append(kind)
        at += 8
    for s, kind in zip(segments, kinds, strict=True):
        buckets = -(-int(s["numel"]) // bucket_size(s))
        count = 0 if kind != CODED else {2: buckets, 3: 2 * buckets}.get(int(s["quantizer"]), 0)
        sides.append(np.frombuffer(payload, dtype="<f4", count=count, offset=at))
        at += 4 * count
    tables = []
    types = plan_blocks(segments)
    for run_type, _ in types:
        kind, shift, freqs = payload[at] & 15, payload[at] >> 4, [[0] * 256]
        at += 1
        if kind == 3:
            freqs = [[0] * 256 for _ in range(payload[at])]
            at += 1
        if kind in (1, 3):
            low, high = payload[at], payload[at + 1]
            at += 2
            for freq in freqs:
                for code in [0, *range(low, high + 1)]:
                    freq[code] = payload[at]
                    at += 1
                    if freq[code] >= 128:
                        freq[code] = (freq[code] - 128) * 256 + payload[at]
                        at += 1
        tables.append(([[int(f) for f in book.tables[run_type]]] if kind == 2 else freqs, shift))
    entry = at + -at % 4
    at = struct.unpack_from("<I", payload, 104)[0]
    out = [np.zeros(int(s["numel"]), dtype=F32) for s in segments]
    for (_, run), (freqs, shift) in zip(types, tables, strict=True):
        for block in run:
            length, info, crc = struct.unpack_from("<III", payload, entry)
            entry += 12
            coded = [p for p in block if kinds[p[0]] == CODED]
            k = decode_block(
                payload[at : at + length], info, sum(p[2] for p in coded), freqs, shift
            )
            at += length + -length % 4
            for row, start, n in coded:
                s = segments[row]
                u = uniforms(header, s, start, n)
                out[row][start : start + n] = dequantize(
                    k[:n], s, steps[row], sides[row], levels, u, start
                )
                k = k[n:]
    for row, kind in enumerate(kinds):
        if kind == RAW:
            out[row] = np.frombuffer(payload, "<f4", int(segments[row]["numel"]), at)
            at += 4 * int(segments[row]["numel"])
        elif kind == NONFINITE:
            out[row][:] = np.nan
    return np.concatenate(out)
