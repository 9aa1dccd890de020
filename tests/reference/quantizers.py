"""Random numbers and quantisers (docs/wire-format.md), one array operation a line."""

from __future__ import annotations

import numpy as np

F32 = np.float32
BLOCK = 65536


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
