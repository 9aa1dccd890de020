# mypy: disable-error-code="no-untyped-def"
"""The random numbers of the payload in a tile of groups (docs/wire-format.md, "Random numbers").

A group is 128 coordinates: 16 lanes, each with one Philox block whose eight 16-bit halves serve
rows 0..7. So a tile of G groups is kept as [G, 16 lanes, 8 rows]: every thread turns the words it
has computed into the numbers of its own coordinates; nothing is exchanged between threads.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.random import philox_impl


@triton.jit
def word(call, i: tl.constexpr):
    """Word i of a call: key low, key high, exchange low, exchange high, stage << 24."""
    return tl.load(call + i).to(tl.uint32, bitcast=True)


@triton.jit
def tile_uniforms(group, layer, call):
    """U of [G, 16, 8] coordinates.

    Args:
        group: uint32 [G], index / 128 in the layer.
        layer: uint32 scalar or [G, 1].
        call: pointer to the five words of `word`.
    """
    c0 = group[:, None] * 16 + tl.arange(0, 16).to(tl.uint32)[None, :]
    zero = c0 * 0
    w0, w1, w2, w3 = philox_impl(
        c0,
        zero + (layer | word(call, 4)),
        zero + word(call, 2),
        zero + word(call, 3),
        zero + word(call, 0),
        zero + word(call, 1),
    )
    # The last dimension runs over rows: word (row >> 1), half (row & 1).
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    bits = tl.join(words & 0xFFFF, words >> 16)
    return (tl.reshape(bits, [c0.shape[0], 16, 8]).to(tl.float32) + 0.5) * 0.0000152587890625


@triton.jit
def tile_coordinates(GROUPS: tl.constexpr):
    """Position of each of [G, 16, 8] coordinates within the tile."""
    g = tl.arange(0, GROUPS)[:, None, None]
    lane = tl.arange(0, 16)[None, :, None]
    row = tl.arange(0, 8)[None, None, :]
    return g * 128 + row * 16 + lane
