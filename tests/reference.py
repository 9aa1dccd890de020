"""NumPy reference of the payload (docs/wire-format.md): slow, obvious, no code shared with native.

Symbols and bytes must equal the native codec's. Segments are rows of `horovod_qoda.coding.SEGMENT`.
"""

from __future__ import annotations

import struct

import numpy as np

F32 = np.float32
BLOCK, GROUP, LANES, SCALE = 65536, 128, 32, 4096
ZERO, CODED, RAW, NONFINITE = range(4)
MIN_STEP, MAX_STEP = F32(2.0**-120), F32(2.0**120)


# ---------------------------------------------------------------- random numbers


def philox4x32_10(counter, key):
    """Four arrays of uint32 words from four counter words and two key words (broadcast)."""
    c = [np.asarray(x, dtype=np.uint64) for x in counter]
    k0, k1 = (np.uint64(k) for k in key)
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c[0]
        p1 = np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> shift) ^ c[1] ^ k0, p1 & low, (p0 >> shift) ^ c[3] ^ k1, p0 & low]
        k0 = (k0 + np.uint64(0x9E3779B9)) & low
        k1 = (k1 + np.uint64(0xBB67AE85)) & low
    return [np.asarray(x, dtype=np.uint32) for x in np.broadcast_arrays(*c)]


def uniforms(header, segment, start, n):
    """U of n coordinates from `start` (a multiple of 128) of a segment."""
    j = np.arange(n, dtype=np.uint64) + np.uint64(int(segment["index"]) + start)
    group, i = j // np.uint64(128), j % np.uint64(128)
    row, lane = i // np.uint64(16), i % np.uint64(16)
    counter = (
        np.uint64(16) * group + lane,
        np.full(n, int(segment["layer"]) + (header.stage << 24), dtype=np.uint64),
        np.full(n, header.exchange & 0xFFFFFFFF, dtype=np.uint64),
        np.full(n, header.exchange >> 32, dtype=np.uint64),
    )
    words = np.stack(philox4x32_10(counter, (header.key & 0xFFFFFFFF, header.key >> 32)))
    word = words[(row // np.uint64(2)).astype(int), np.arange(n)]
    bits = np.where(row % np.uint64(2) == 0, word & np.uint32(0xFFFF), word >> np.uint32(16))
    return (bits.astype(F32) + F32(0.5)) * F32(2.0**-16)


# ---------------------------------------------------------------- quantisers


def sum_squares(v):
    """Float64, blocks of 65,536 in order, in each 16 lanes by index modulo 16, halved."""
    total = 0.0
    for at in range(0, len(v), BLOCK):
        x = np.zeros(-(-len(v[at : at + BLOCK]) // 16) * 16)
        x[: len(v[at : at + BLOCK])] = v[at : at + BLOCK].astype(np.float64) ** 2
        lanes = np.zeros(16)
        for row in x.reshape(-1, 16):
            lanes = lanes + row
        for width in (8, 4, 2, 1):
            lanes = lanes[:width] + lanes[width : 2 * width]
        total += lanes[0]
    return total


def bucket_size(segment):
    return int(segment["bucket"]) or int(segment["numel"])


def side_values(v, segment, levels):
    """Norms, or (minimum, unit) pairs, flat float32."""
    out = []
    for at in range(0, len(v), bucket_size(segment)):
        b = v[at : at + bucket_size(segment)]
        if segment["quantizer"] == 3:
            low, high = F32(b.min() + F32(0)), F32(b.max())
            top = F32(2 * len(levels[segment["levels"]]) - 1)
            out += [low, F32((high - low) / top + F32(0))]
        elif segment["norm"] == 0:
            out.append(np.abs(b).max())
        else:
            with np.errstate(over="ignore"):
                out.append(F32(np.sqrt(sum_squares(b))))
    return np.array(out, dtype=F32)


def quantize(v, segment, sides, levels, u, start):
    """Symbols k as float32 of coordinates start.. of a segment."""
    if segment["quantizer"] == 1:
        return np.floor(v * (F32(1) / segment["step"]) + u)
    bucket = (start + np.arange(len(v))) // bucket_size(segment)
    sequence = np.asarray(levels[segment["levels"]], dtype=F32)
    n = len(sequence)
    if segment["quantizer"] == 3:
        low, unit = sides[2 * bucket], sides[2 * bucket + 1]
        safe = np.where(unit > 0, unit, F32(1))
        q = np.where(unit > 0, np.floor((v - low) / safe + u), F32(0))
        return np.minimum(q, F32(2 * n - 1)) - F32(n)
    norm = sides[bucket]
    safe = np.where(norm > 0, norm, F32(1))
    r = np.where(norm > 0, np.minimum(np.abs(v) / safe, F32(1)), F32(0)).astype(F32)
    j = np.minimum(np.searchsorted(sequence, r, side="right") - 1, n - 2)
    inverse_gap = F32(1) / (sequence[1:] - sequence[:-1])
    h = (j + (u < (r - sequence[j]) * inverse_gap[j])).astype(F32)
    return np.where(v < 0, F32(0) - h, h)


def dequantize(k, segment, step, sides, levels, u, start):
    if segment["quantizer"] == 1:
        return k * step if segment["reconstruction"] == 0 else (k + (F32(0.5) - u)) * step
    bucket = (start + np.arange(len(k))) // bucket_size(segment)
    sequence = np.asarray(levels[segment["levels"]], dtype=F32)
    if segment["quantizer"] == 3:
        return (k + F32(len(sequence))) * sides[2 * bucket + 1] + sides[2 * bucket]
    level = sequence[np.abs(k).astype(int)]
    return np.where(k < 0, F32(0) - level, level) * sides[bucket]


# ---------------------------------------------------------------- tables


def count_codes(k, shift=0):
    h = np.floor(k * F32(1.0 / (1 << shift)))
    code = np.where(np.abs(h) <= 127, h + 128, 0).astype(int)
    return np.bincount(code, minlength=256)


def normalize(counts, exact):
    """256 frequencies that sum to 4096."""
    counts = [int(c) for c in counts]
    total = sum(counts)
    freq = [0] * 256
    if total == counts[0]:
        freq[0], freq[128] = SCALE - 1, 1
        return freq
    used = [c for c in range(1, 256) if counts[c]]
    peak = max(used, key=lambda c: (counts[c], -c))

    def best_end(end, direction):
        escaped, best_cost, best = 0, None, end
        while end != peak + direction:
            cost = escaped * 8 * 2839 + abs(peak - end) * total
            if best_cost is None or cost < best_cost:
                best_cost, best = cost, end
            escaped += counts[end]
            end += direction
        return best

    codes = list(range(best_end(used[0], 1), best_end(used[-1], -1) + 1))
    count = [counts[c] for c in codes]
    if not exact or sum(count) != total:
        codes, count = [0, *codes], [total - sum(count), *count]
    f = [max(1, (2 * c * SCALE + total) // (2 * total)) for c in count]
    while sum(f) < SCALE:
        f[max(range(len(f)), key=lambda i: (count[i] / (2 * f[i] + 1), -i))] += 1
    while sum(f) > SCALE:
        movable = [i for i in range(len(f)) if f[i] > 1]
        f[min(movable, key=lambda i: (count[i] / (2 * f[i] - 1), i))] -= 1
    for c, value in zip(codes, f, strict=True):
        freq[c] = value
    return freq


def code_range(freq):
    used = [c for c in range(1, 256) if freq[c]]
    return used[0], used[-1]


def serialize(freq):
    low, high = code_range(freq)
    out = bytearray([low, high])
    for f in [freq[0], *freq[low : high + 1]]:
        out += bytes([f]) if f < 128 else bytes([0x80 + (f >> 8), f & 255])
    return bytes(out)


def coded_bits(freq, counts):
    low, high = code_range(freq)
    inside = np.arange(256)
    inside = (inside >= low) & (inside <= high)
    bits = 32.0 * counts[0]
    for c in np.flatnonzero(inside & (counts > 0)):
        bits += counts[c] * (12 - np.log2(freq[c]))
    escaped = counts[~inside].sum()
    if escaped:
        bits += escaped * (20 - np.log2(freq[0])) if freq[0] else np.inf
    return bits


# ---------------------------------------------------------------- rANS


def starts(freq):
    return np.concatenate([[0], np.cumsum(freq)[:-1]]).astype(np.int64)


def push(x, code, freq, start, words):
    if x >= freq[code] << 20:
        words.append(x & 0xFFFF)
        x >>= 16
    return x // freq[code] * SCALE + x % freq[code] + int(start[code])


def rans_encode(codes, freq):
    """(states, words, number of tail symbols)"""
    start = starts(freq)
    x, words, tail = 1 << 16, [], 0
    while tail < min(len(codes), 1024):
        code = codes[len(codes) - 1 - tail]
        if x >= freq[code] << 20 and len(words) == LANES - 2:
            break
        x = push(x, code, freq, start, words)
        tail += 1
    low = [x & 0xFFFF, x >> 16, *reversed(words)]
    states = [(1 << 16) + w for w in low + [0] * (LANES - len(low))]
    words = []
    for i in reversed(range(len(codes) - tail)):
        states[i % LANES] = push(states[i % LANES], codes[i], freq, start, words)
    return states, words[::-1], tail


def rans_decode(states, words, n, freq):
    """(codes, final states, words left over)"""
    states, words, start = list(states), list(words), starts(freq)
    code_of_slot = np.repeat(np.arange(256), freq)
    codes = []
    for i in range(n):
        x = states[i % len(states)]
        code = int(code_of_slot[x % SCALE])
        x = freq[code] * (x >> 12) + x % SCALE - int(start[code])
        if x < 1 << 16:
            x = (x << 16) + words.pop(0)
        states[i % len(states)] = x
        codes.append(code)
    return codes, states, words


# ---------------------------------------------------------------- blocks


def pad4(data):
    return data + b"\0" * (-len(data) % 4)


def certain_code(freq, shift):
    return freq.index(SCALE) if shift == 0 and SCALE in freq else 0


def is_small(k):
    return abs(k) <= 127 and k == np.floor(k)


def encode_block(k, freq, shift):
    """(bytes without padding, info)"""
    if len(k) == 0 or certain_code(freq, shift):
        return b"", 0
    low, high = code_range(freq)
    h = np.floor(k * F32(1.0 / (1 << shift)))
    inside = (h >= low - 128) & (h <= high - 128)
    codes = np.where(inside, h + 128, 0).astype(int).tolist()
    states, words, tail = rans_encode(codes, freq)
    escaped = [F32(x) for x in k[~inside]]
    data = struct.pack("<32I", *states)
    data += pad4(bytes(int(x) + 128 if is_small(x) else 0 for x in escaped))
    data += b"".join(struct.pack("<f", x) for x in escaped if not is_small(x))
    if shift:
        bits = np.where(inside, k - h * F32(1 << shift), 0).astype(np.uint8)
        planes = (bits[:, None] >> np.arange(shift)) & 1
        packed = np.packbits(planes.ravel().astype(np.uint8), bitorder="little").tobytes()
        data += packed + b"\0" * (len(packed) % 2)
    data += np.array(words, dtype="<u2").tobytes()
    if len(pad4(data)) > 4 * len(k):
        return k.astype("<f4").tobytes(), 1 << 31
    return data, len(escaped) | tail << 17


def decode_block(data, info, n, freq, shift):
    """k as float32 [n]"""
    if n == 0 or certain_code(freq, shift):
        return np.full(n, certain_code(freq, shift) - 128, dtype=F32)
    if info == 1 << 31:
        return np.frombuffer(data, dtype="<f4")
    n_escapes, tail = info & 0x1FFFF, info >> 17
    states = np.frombuffer(data[:128], dtype="<u4").tolist()
    escape_bytes = data[128 : 128 + n_escapes]
    at = 128 + n_escapes + -n_escapes % 4
    floats = np.frombuffer(data[at : at + 4 * escape_bytes.count(0)], dtype="<f4").tolist()
    at += 4 * len(floats)
    bits = np.unpackbits(np.frombuffer(data[at:], dtype=np.uint8), bitorder="little")
    at += (n * shift + 15) // 16 * 2
    words = np.frombuffer(data[at:], dtype="<u2").tolist()
    codes, states, words = rans_decode(states, words, n - tail, freq)
    assert not words and all(x >> 16 == 1 for x in states)
    w = [x & 0xFFFF for x in states]
    last, final, rest = rans_decode([w[0] + (w[1] << 16)], w[2:], tail, freq)
    assert final == [1 << 16] and not any(rest)
    escapes = [b - 128 if b else floats.pop(0) for b in escape_bytes]
    k = []
    for i, code in enumerate(codes + last):
        low = sum(int(bits[i * shift + b]) << b for b in range(shift))
        k.append((code - 128) * (1 << shift) + low if code else escapes.pop(0))
    assert not escapes
    return np.array(k, dtype=F32)


# ---------------------------------------------------------------- payload


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
    """(kind byte, frequencies, shift) from the symbols of each coded piece of a type."""
    groups = [k[at : at + GROUP] for k in symbols for at in range(0, len(k), GROUP)]
    if not groups:
        return 0, None, 0
    stride = max(1, len(groups) // min(max(len(groups) // 8, 512), 1024))
    drawn = range(-(-len(groups) // stride))
    picked = [i * stride + jitter(i, stride) for i in drawn]
    sample = np.concatenate([groups[i] for i in picked if i < len(groups)])
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
    if book is not None and run_type < len(book.tables) and book.tables[run_type].any():
        agreed = [int(f) for f in book.tables[run_type]]
        if agreed[0] and coded_bits(agreed, counts) * scale <= bits + 8 * len(serialize(freq)):
            return 2, agreed, 0
    return 1 | shift << 4, freq, shift


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
        kind, freq, shift = choose_table([x for pieces in k for x in pieces], run_type, book)
        meta += bytes([kind]) + (serialize(freq) if kind & 15 == 1 else b"")
        for pieces in k:
            joined = np.concatenate([np.zeros(0, dtype=F32), *pieces])
            blocks.append(encode_block(joined, freq, shift))
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
        *(0x41444F51, 1, 112, meta_bytes + len(body), header.layout_hash, header.exchange),
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
        kind, shift, freq = payload[at] & 15, payload[at] >> 4, [0] * 256
        at += 1
        if kind == 1:
            low, high = payload[at], payload[at + 1]
            at += 2
            for code in [0, *range(low, high + 1)]:
                freq[code] = payload[at]
                at += 1
                if freq[code] >= 128:
                    freq[code] = (freq[code] - 128) * 256 + payload[at]
                    at += 1
        tables.append(([int(f) for f in book.tables[run_type]] if kind == 2 else freq, shift))
    entry = at + -at % 4
    at = struct.unpack_from("<I", payload, 104)[0]
    out = [np.zeros(int(s["numel"]), dtype=F32) for s in segments]
    for (_, run), (freq, shift) in zip(types, tables, strict=True):
        for block in run:
            length, info, crc = struct.unpack_from("<III", payload, entry)
            entry += 12
            coded = [p for p in block if kinds[p[0]] == CODED]
            k = decode_block(payload[at : at + length], info, sum(p[2] for p in coded), freq, shift)
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
