# mypy: disable-error-code="no-untyped-def"
"""Classes of groups of 128 symbols, and the order in which a block codes its groups.

The order is a table of 512 numbers a block: at each place in coding, 4 * group + class.
"""

from __future__ import annotations

import triton
import triton.language as tl

from horovod_qoda.kernels import fields as f

GROUP = tl.constexpr(128)
GROUPS = tl.constexpr(512)
"""Groups in the largest block."""

CLASSES = tl.constexpr(4)
IDS_EACH = 16
"""Groups whose class one program of `find_ids` finds."""


@triton.jit
def size_bin(size, n):
    """Half octave of a group's sum |code - 128| (int32), scaled from its n codes to 128."""
    size = size * GROUP // n
    octave = (size.to(tl.float32).to(tl.int32, bitcast=True) >> 22) - 254
    return tl.where(size < 2, size, octave)


@triton.jit
def id_bytes(n):
    """Bytes of the class numbers of n symbols."""
    return ((n + GROUP - 1) // GROUP * 2 + 31) // 32 * 4


@triton.jit
def store_order(order, ids, n):
    """Groups by class, in each as they come; a last group that is not whole stays last."""
    group = tl.arange(0, GROUPS)
    whole = n // GROUP
    place = group
    before = 0
    for c in tl.static_range(CLASSES):
        mine = (group < whole) & (ids == c)
        rank = tl.cumsum(mine.to(tl.int32), axis=0) - 1
        place = tl.where(mine, before + rank, place)
        before += tl.sum(mine.to(tl.int32))
    tl.store(order + place, group * CLASSES + ids, mask=group < (n + GROUP - 1) // GROUP)


@triton.jit
def find_ids(codes, places_of_blocks, block_type, class_of_bin, ids, EACH: tl.constexpr):
    """Class of each group, uint8 [n_blocks, GROUPS]. Grid: (n_blocks, GROUPS / EACH).

    Args:
        class_of_bin: int32 [n_types, 32].
    """
    block = tl.program_id(0)
    place = places_of_blocks + block * f.PLACE
    n = tl.load(place + f.SYMBOLS).to(tl.int32)
    group = tl.program_id(1) * EACH + tl.arange(0, EACH)
    i = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    code = tl.load(codes + tl.load(place + f.SYMBOL_AT) + i, mask=i < n, other=128).to(tl.int32)
    here = tl.minimum(tl.maximum(n - group * GROUP, 1), GROUP)
    size = size_bin(tl.sum(tl.abs(code - 128), axis=1), here)
    found = tl.load(class_of_bin + tl.load(block_type + block) * 32 + size)
    tl.store(ids + block * GROUPS + group, found.to(tl.uint8))


@triton.jit
def order_groups(places_of_blocks, ids, order):
    """Order of every block to be coded, int32 [n_blocks, GROUPS]."""
    block = tl.program_id(0)
    n = tl.load(places_of_blocks + block * f.PLACE + f.SYMBOLS).to(tl.int32)
    mine = tl.load(ids + block * GROUPS + tl.arange(0, GROUPS)).to(tl.int32)
    store_order(order + block * GROUPS, mine, n)


@triton.jit
def order_sent_groups(payloads, jobs, order, error, JOBS_EACH):
    """Order of every block that was sent; error[job / JOBS_EACH] = 1 for a class without table."""
    job_id = tl.program_id(0)
    job = jobs + job_id * f.JOB
    if tl.load(job + f.MODE) == f.STREAM:
        n = tl.load(job + f.SYMBOLS).to(tl.int32)
        classes = tl.load(job + f.CLASSES).to(tl.int32)
        group = tl.arange(0, GROUPS)
        sent = tl.where(classes > 1, (n + GROUP - 1) // GROUP, 0)
        at = payloads + tl.load(job + f.BYTE_AT) + 128 + group // 4
        byte = tl.load(at, mask=group < sent, other=0)
        ids = tl.where(group < sent, (byte.to(tl.int32) >> (group % 4 * 2)) & 3, 0)
        wrong = ids >= classes
        if tl.max(wrong.to(tl.int32)) > 0:
            tl.store(error + job_id // JOBS_EACH, 1)
        store_order(order + job_id * GROUPS, tl.where(wrong, 0, ids), n)


@triton.jit
def pack_ids(ids, n, to, GROUPS_EACH: tl.constexpr):
    """A block's class numbers, two bits each, and the zeros behind them."""
    byte_at = tl.arange(0, GROUPS_EACH // 4)
    groups = (n + GROUP - 1) // GROUP
    byte = tl.zeros([GROUPS_EACH // 4], tl.int32)
    for q in tl.static_range(4):
        group = byte_at * 4 + q
        byte |= tl.load(ids + group, mask=group < groups, other=0).to(tl.int32) << (2 * q)
    tl.store(to + byte_at, byte.to(tl.uint8), mask=byte_at < id_bytes(n))
