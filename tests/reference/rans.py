"""Code tables, rANS and coding blocks (docs/wire-format.md), one symbol at a time."""

from __future__ import annotations

import struct

import numpy as np

F32 = np.float32
LANES, SCALE = 32, 4096


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
