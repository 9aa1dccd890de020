"""Code tables, rANS and coding blocks (docs/wire-format.md), one symbol at a time."""

from __future__ import annotations

import math
import struct

import numpy as np

F32 = np.float32
LANES, SCALE, GROUP = 32, 4096, 128
MOST_CLASSES, BINS = 4, 29


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

    low, high = best_end(used[0], 1), best_end(used[-1], -1)
    escape = not exact or sum(counts[low : high + 1]) != total
    return normalize_range(counts, low, high, escape)


def normalize_range(counts, low, high, escape):
    """The same for codes low..high and, if there is to be one, the escape."""
    counts = [int(c) for c in counts]
    total = sum(counts)
    freq = [0] * 256
    codes = list(range(low, high + 1))
    count = [counts[c] for c in codes]
    if escape:
        codes, count = [0, *codes], [total - sum(count), *count]
    rare = [2 * c * SCALE < total for c in count]
    left = SCALE - sum(rare)
    shared = sum(c for c, few in zip(count, rare, strict=True) if not few)
    f = [
        1 if few else max(1, (2 * c * left + shared) // (2 * shared))
        for c, few in zip(count, rare, strict=True)
    ]
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


def serialize(*tables):
    low, high = code_range(tables[0])
    out = bytearray([low, high])
    for f in [f for freq in tables for f in [freq[0], *freq[low : high + 1]]]:
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


def size_bin(codes):
    """Half octave of the sum of |code - 128| over a group, a short one scaled to 128 codes."""
    size = sum(abs(int(c) - 128) for c in codes) * GROUP // len(codes)
    if size < 2:
        return size
    octave = size.bit_length() - 1
    return 2 * octave + (size >> (octave - 1) & 1)


def ideal_bits(counts):
    def n_log_n(n):
        return n * math.log2(n) if n else 0.0

    bits = 0.0
    for c in counts:
        bits -= n_log_n(int(c))
    return bits + n_log_n(int(sum(counts)))


def choose_classes(groups, one, scale, most_bits):
    """(tables, class of each bin, bits of the sample), None where no use; groups: their codes."""
    if certain_code(one, 0):
        return None
    bins = [size_bin(codes) for codes in groups]
    clusters = []  # bin behind the last, counts
    for b in sorted(set(bins)):
        mine = [codes for codes, its in zip(groups, bins, strict=True) if its == b]
        clusters.append((b + 1, np.bincount(np.concatenate(mine), minlength=256)))
    id_bits = 2 * len(groups)
    if len(clusters) < 2:
        return None
    if (id_bits + sum(ideal_bits(c) for _, c in clusters)) * scale >= most_bits:
        return None
    while len(clusters) > MOST_CLASSES:
        loss = [
            ideal_bits(a + b) - ideal_bits(a) - ideal_bits(b)
            for (_, a), (_, b) in zip(clusters, clusters[1:], strict=False)
        ]
        at = loss.index(min(loss))
        clusters[at : at + 2] = [(clusters[at + 1][0], clusters[at][1] + clusters[at + 1][1])]
    low, high = code_range(one)
    tables = [normalize_range(counts, low, high, one[0] > 0) for _, counts in clusters]
    bits = id_bits + sum(coded_bits(t, c) for t, (_, c) in zip(tables, clusters, strict=True))
    if bits * scale + 8 * len(serialize(*tables)) >= most_bits:
        return None
    ends = [end for end, _ in clusters[:-1]]
    return tables, [sum(b >= end for end in ends) for b in range(BINS)], bits


def starts(freq):
    return np.concatenate([[0], np.cumsum(freq)[:-1]]).astype(np.int64)


def push(x, code, freq, start, words):
    if x >= freq[code] << 20:
        words.append(x & 0xFFFF)
        x >>= 16
    return x // freq[code] * SCALE + x % freq[code] + int(start[code])


def rans_encode(codes, freqs):
    """(states, words, number of tail symbols); freqs: the table of each code."""
    start = {id(freq): starts(freq) for freq in freqs}
    x, words, tail = 1 << 16, [], 0
    while tail < min(len(codes), 1024):
        code, freq = codes[len(codes) - 1 - tail], freqs[len(codes) - 1 - tail]
        if x >= freq[code] << 20 and len(words) == LANES - 2:
            break
        x = push(x, code, freq, start[id(freq)], words)
        tail += 1
    low = [x & 0xFFFF, x >> 16, *reversed(words)]
    states = [(1 << 16) + w for w in low + [0] * (LANES - len(low))]
    words = []
    for i in reversed(range(len(codes) - tail)):
        freq = freqs[i]
        states[i % LANES] = push(states[i % LANES], codes[i], freq, start[id(freq)], words)
    return states, words[::-1], tail


def rans_decode(states, words, freqs):
    """(codes, final states, words left over); freqs: the table of each code."""
    states, words = list(states), list(words)
    start = {id(freq): starts(freq) for freq in freqs}
    code_of_slot = {id(freq): np.repeat(np.arange(256), freq) for freq in freqs}
    codes = []
    for i, freq in enumerate(freqs):
        x = states[i % len(states)]
        code = int(code_of_slot[id(freq)][x % SCALE])
        x = freq[code] * (x >> 12) + x % SCALE - int(start[id(freq)][code])
        if x < 1 << 16:
            x = (x << 16) + words.pop(0)
        states[i % len(states)] = x
        codes.append(code)
    return codes, states, words


def pad4(data):
    return data + b"\0" * (-len(data) % 4)


def certain_code(freq, shift):
    return freq.index(SCALE) if shift == 0 and SCALE in freq else 0


def is_small(k):
    return abs(k) <= 127 and k == np.floor(k)


def coding_order(ids, n):
    """Indices of n symbols by their group's class; a last group that is not whole stays last."""
    whole = n // GROUP
    groups = sorted(range(whole), key=lambda g: ids[g])
    return [i for g in groups for i in range(g * GROUP, (g + 1) * GROUP)] + list(
        range(whole * GROUP, n)
    )


def encode_block(k, tables, class_of_bin, shift):
    """(bytes without padding, info); tables: of each class."""
    if len(k) == 0 or certain_code(tables[0], shift):
        return b"", 0
    low, high = code_range(tables[0])
    h = np.floor(k * F32(1.0 / (1 << shift)))
    inside = (h >= low - 128) & (h <= high - 128)
    codes = np.where(inside, h + 128, 0).astype(int).tolist()
    ids = [0] * -(-len(k) // GROUP)
    if len(tables) > 1:
        parts = [codes[at : at + GROUP] for at in range(0, len(k), GROUP)]
        ids = [class_of_bin[size_bin(part)] for part in parts]
    order = coding_order(ids, len(k))
    states, words, tail = rans_encode(
        [codes[i] for i in order], [tables[ids[i // GROUP]] for i in order]
    )
    escaped = [F32(x) for x in k[~inside]]
    data = struct.pack("<32I", *states)
    if len(tables) > 1:
        number = sum(c << 2 * g for g, c in enumerate(ids))
        data += pad4(number.to_bytes(-(-len(ids) // 4), "little"))
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


def decode_block(data, info, n, tables, shift):
    """k as float32 [n]; tables: of each class."""
    if n == 0 or certain_code(tables[0], shift):
        return np.full(n, certain_code(tables[0], shift) - 128, dtype=F32)
    if info == 1 << 31:
        return np.frombuffer(data, dtype="<f4")
    n_escapes, tail = info & 0x1FFFF, info >> 17
    states = np.frombuffer(data[:128], dtype="<u4").tolist()
    at, ids = 128, [0] * -(-n // GROUP)
    if len(tables) > 1:
        ids = [data[at + g // 4] >> g % 4 * 2 & 3 for g in range(len(ids))]
        at += len(pad4(bytes(-(-len(ids) // 4))))
    order = coding_order(ids, n)
    freqs = [tables[ids[i // GROUP]] for i in order]
    escape_bytes = data[at : at + n_escapes]
    at += n_escapes + -n_escapes % 4
    floats = np.frombuffer(data[at : at + 4 * escape_bytes.count(0)], dtype="<f4").tolist()
    at += 4 * len(floats)
    bits = np.unpackbits(np.frombuffer(data[at:], dtype=np.uint8), bitorder="little")
    at += (n * shift + 15) // 16 * 2
    words = np.frombuffer(data[at:], dtype="<u2").tolist()
    codes, states, words = rans_decode(states, words, freqs[: n - tail])
    assert not words and all(x >> 16 == 1 for x in states)
    w = [x & 0xFFFF for x in states]
    last, final, rest = rans_decode([w[0] + (w[1] << 16)], w[2:], freqs[n - tail :])
    assert final == [1 << 16] and not any(rest)
    escapes = [b - 128 if b else floats.pop(0) for b in escape_bytes]
    in_place = [0] * n
    for i, code in zip(order, codes + last, strict=True):
        in_place[i] = code
    k = []
    for i, code in enumerate(in_place):
        low = sum(int(bits[i * shift + b]) << b for b in range(shift))
        k.append((code - 128) * (1 << shift) + low if code else escapes.pop(0))
    assert not escapes
    return np.array(k, dtype=F32)
