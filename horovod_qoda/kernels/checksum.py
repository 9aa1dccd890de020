# mypy: disable-error-code="no-untyped-def"
"""CRC32C of blocks on the device.

Let T be the linear map that takes a CRC register over 32 zero bits. The register after words w_0 ..
w_{N-1} is the XOR of T^{N-i} w_i, with the initial value added to w_0. LANES lanes take every
LANES-th word each and step by T^LANES, which is four look-ups; at the end lane l applies
T^{LANES - l}, as a matrix over bits, and lanes are XORed. Zero words in front change nothing.
"""

from __future__ import annotations

import functools

import numpy as np
import triton
import triton.language as tl

LANES = 256
_POLYNOMIAL = np.uint32(0x82F63B78)


@triton.jit
def checksum(words, n, steps, last, LANES: tl.constexpr):
    """CRC32C of n words, int32; `steps` and `last` are of `lane_tables`."""
    lane = tl.arange(0, LANES)
    state = tl.zeros([LANES], tl.uint32)
    first = (n + LANES - 1) // LANES * LANES - n
    for row in range(0, n, LANES):
        i = row + lane - first
        w = tl.load(words + i, mask=i >= 0, other=0).to(tl.uint32, bitcast=True)
        w = tl.where(i == 0, w ^ 0xFFFFFFFF, w)
        stepped = tl.load(steps + (state & 255).to(tl.int32))
        stepped ^= tl.load(steps + 256 + ((state >> 8) & 255).to(tl.int32))
        stepped ^= tl.load(steps + 512 + ((state >> 16) & 255).to(tl.int32))
        stepped ^= tl.load(steps + 768 + (state >> 24).to(tl.int32))
        state = stepped.to(tl.uint32, bitcast=True) ^ w
    moved = tl.zeros([LANES], tl.int32)
    for bit in tl.static_range(32):
        column = tl.load(last + bit * LANES + lane)
        moved ^= tl.where(((state >> bit) & 1) != 0, column, 0)
    return tl.where(n == 0, 0, tl.xor_sum(moved, axis=0) ^ -1)


@triton.jit
def checksum_blocks(body32, word_at, n_words, steps, last, checksums, LANES: tl.constexpr):
    """checksums[block] = CRC32C of n_words words from word_at on.

    Args:
        body32: int32; word_at, n_words: int64 [n_blocks].
        checksums: int32 [n_blocks].
    """
    block = tl.program_id(0)
    n = tl.load(n_words + block).to(tl.int32)
    found = checksum(body32 + tl.load(word_at + block), n, steps, last, LANES)
    tl.store(checksums + block, found)


@triton.jit
def check_blocks(
    payloads32, word_at, n_words, expected, blocks, steps, last, wrong, LANES: tl.constexpr
):  # fmt: skip
    """wrong[payload] = block + 1 for a block whose checksum is not the expected one.

    Args:
        payloads32, word_at, n_words: as for `checksum_blocks`, of the blocks of several payloads.
        expected: int32 [n_blocks].
        blocks: int32 [n_blocks, 2], each block's payload, and its number there.
    """
    block = tl.program_id(0)
    n = tl.load(n_words + block).to(tl.int32)
    found = checksum(payloads32 + tl.load(word_at + block), n, steps, last, LANES)
    if found != tl.load(expected + block):
        number = tl.load(blocks + 2 * block + 1)
        tl.store(wrong + tl.load(blocks + 2 * block), number + 1)


@functools.lru_cache(maxsize=1)
def lane_tables() -> tuple[np.ndarray, np.ndarray]:
    """T^LANES by bytes of the state, int32 [4 * 256]; T^{LANES - lane} by bits, [32 * LANES]."""
    by_byte = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        by_byte = by_byte >> np.uint32(1) ^ np.where(by_byte & 1, _POLYNOMIAL, np.uint32(0))

    def step(x: np.ndarray) -> np.ndarray:
        for _ in range(4):
            x = x >> np.uint32(8) ^ by_byte[x & np.uint32(255)]
        return x

    columns = np.uint32(1) << np.arange(32, dtype=np.uint32)
    last = np.zeros((32, LANES), np.uint32)
    for power in range(1, LANES + 1):
        columns = step(columns)
        last[:, LANES - power] = columns
    value = np.arange(256, dtype=np.uint32)
    steps = np.zeros((4, 256), np.uint32)
    for byte in range(4):
        for bit in range(8):
            column = columns[8 * byte + bit]
            steps[byte] ^= np.where(value >> np.uint32(bit) & 1, column, np.uint32(0))
    return steps.reshape(-1).view(np.int32), last.reshape(-1).view(np.int32)
