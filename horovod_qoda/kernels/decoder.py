"""Payloads, on the host or on the device, to the sum of their values on the device.

A payload's meta part is checked by the native code before anything is written, and is all that the
host reads; checksums of blocks, streams, escapes and symbols are checked by the kernels as they
decode them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import horovod_qoda.native._codec as _codec
from horovod_qoda.coding.payload import DITHERED, Header, PayloadError
from horovod_qoda.coding.tables import Book
from horovod_qoda.kernels import fields as f
from horovod_qoda.kernels.checksum import LANES, check_blocks
from horovod_qoda.kernels.classes import order_sent_groups
from horovod_qoda.kernels.coder import EXACT, ONE_WARP, Coder, LevelTables, call_words
from horovod_qoda.kernels.dequantize import spread_escapes, sum_tiles
from horovod_qoda.kernels.geometry import GROUPS, Geometry
from horovod_qoda.kernels.rans import decode_streams, fill_slots
from horovod_qoda.kernels.tables import certain_code

TILE = 1024
MOST_TAIL = 1024
SLOT_WIDTH = 1024

TOGETHER = 4
"""Payloads decoded side by side: a stream is one warp, and 64 MB of gradients have 256 of them, too
few for a large device. Each takes 5 bytes a coordinate of device memory."""

Unpacked = dict[str, Any]


def decode_sum(
    coder: Coder,
    payloads: Sequence[torch.Tensor],
    fronts: Sequence[npt.NDArray[np.uint8]],
    segments: npt.NDArray[np.void],
    out: torch.Tensor,
    *,
    expect: Sequence[Header],
    book: Book | None,
    levels: Sequence[npt.ArrayLike],
    add: bool,
    scale: float,
    stream: Any | None,
) -> list[Header]:
    """See `horovod_qoda.kernels.decode_sum`."""
    coder.check_values("out", out)
    if not payloads or len(payloads) != len(expect):
        raise ValueError("as many expected headers as payloads are needed, and at least one")
    level_tables = coder.levels(levels)
    geometry = coder.geometry(segments, out.numel(), level_tables)
    tables = None if book is None else book.tables
    book_hash = expect[0].book_hash if book is None else book.hash
    unpacked = [
        _codec.unpack(
            front, segments, out.numel(), header.as_tuple(), tables, book_hash,
            [list(sequence) for sequence in level_tables.sequences],
        )
        for front, header in zip(fronts, expect, strict=True)
    ]  # fmt: skip
    for payload, part in zip(payloads, unpacked, strict=True):
        if payload.numel() < part["payload_bytes"]:
            raise PayloadError(f"truncated: {payload.numel()} of {part['payload_bytes']} bytes")
    found = [_jobs(geometry, part) for part in unpacked]
    headers = [Header(*part["header"]) for part in unpacked]
    with coder.memory.side_stream(stream):
        for first in range(0, len(payloads), TOGETHER):
            some = slice(first, first + TOGETHER)
            _decode_some(
                coder, geometry, level_tables, payloads[some], unpacked[some], found[some],
                headers[some], segments, out, add or first > 0, scale,
            )  # fmt: skip
    return headers


def _jobs(geometry: Geometry, part: Unpacked) -> tuple[np.ndarray, np.ndarray]:
    """(int64 [n_blocks, JOB], [n_pieces, SOURCE]) with positions inside this payload.

    Low bits lie behind the escape floats, whose number `decode_streams` finds; here it is 0.

    Raises:
        PayloadError: lengths that cannot be.
    """
    code_at, n = geometry.symbols_of(part["kinds"])
    slot = geometry.block_type
    length, info = part["length"].astype(np.int64), part["info"].astype(np.int64)
    shift = part["shift"].astype(np.int64)[slot]
    classes = part["classes"].astype(np.int64)
    first_table = np.cumsum(classes) - classes
    certain = np.array([certain_code(part["freq"][row]) for row in first_table], np.int64)
    certain = np.where(part["shift"] == 0, certain, 0)[slot]
    classes, first_table = classes[slot], first_table[slot]
    plain = info == 1 << 31
    empty = (n == 0) | (certain != 0)
    escapes = np.where(plain, 0, info & 0x1FFFF)
    tail = np.where(plain, 0, info >> 17)
    stream = ~empty & ~plain
    ids = np.where(classes > 1, ((n + 127) // 128 * 2 + 31) // 32 * 4, 0)
    low_at = 128 + ids + (escapes + 3) // 4 * 4
    wrong = empty & ((length != 0) | (info != 0))
    wrong |= plain & ~empty & (length != 4 * n)
    wrong |= stream & ((escapes > n) | (tail > np.minimum(n, MOST_TAIL)) | (length % 2 != 0))
    wrong |= stream & (length < low_at + (n * shift + 15) // 16 * 2)
    if wrong.any():
        raise PayloadError(f"block {np.flatnonzero(wrong)[0]}: malformed, or too short")
    jobs = np.zeros((geometry.n_blocks, f.JOB.value), np.int64)
    jobs[:, f.BYTE_AT.value] = part["block_at"]
    jobs[:, f.SYMBOLS.value] = n
    jobs[:, f.SYMBOL_AT.value] = geometry.block_at[:-1]
    jobs[:, f.ESCAPES.value] = escapes
    jobs[:, f.TAIL.value] = tail
    jobs[:, f.LENGTH.value] = length
    jobs[:, f.SHIFT.value] = shift
    jobs[:, f.TABLE.value] = np.where(certain != 0, certain, first_table)
    jobs[:, f.CLASSES.value] = classes
    mode = np.where(plain, f.PLAIN.value, f.STREAM.value)
    mode = np.where(certain != 0, f.CERTAIN.value, mode)
    jobs[:, f.MODE.value] = np.where(n == 0, f.EMPTY.value, mode)
    sources = np.zeros((len(geometry.pieces), f.SOURCE.value), np.int64)
    sources[:, f.CODE_AT.value] = code_at
    sent = stream & (shift > 0)
    coded = np.flatnonzero(code_at >= 0)
    coded = coded[sent[geometry.piece_block[coded]]]
    block = geometry.piece_block[coded]
    inside = code_at[coded] - geometry.block_at[block]
    low_bit_at = 8 * (jobs[:, f.BYTE_AT.value] + low_at)
    sources[coded, f.LOW_BIT_AT.value] = low_bit_at[block] + inside * shift[block]
    sources[coded, f.LOW_BITS.value] = shift[block]
    return jobs, sources


def _checks(unpacked: Sequence[Unpacked], starts: Sequence[int]) -> dict[str, np.ndarray]:
    """What `check_blocks` reads, of the blocks of payloads that start at these bytes."""
    words = [part["checked"].astype(np.int64) // 4 for part in unpacked]
    at = [
        (start + part["meta_bytes"]) // 4 + np.cumsum(n) - n
        for part, start, n in zip(unpacked, starts, words, strict=True)
    ]
    counts = [len(n) for n in words]
    which = np.repeat(np.arange(len(counts)), counts)
    number = np.concatenate([np.arange(count) for count in counts])
    return {
        "word_at": np.concatenate(at),
        "n_words": np.concatenate(words),
        "checksum": np.concatenate([part["checksum"] for part in unpacked]).view(np.int32),
        "blocks": np.stack([which, number], axis=1).astype(np.int32),
    }


def _decode_some(
    coder: Coder,
    geometry: Geometry,
    levels: LevelTables,
    payloads: Sequence[torch.Tensor],
    unpacked: Sequence[Unpacked],
    found: Sequence[tuple[np.ndarray, np.ndarray]],
    headers: Sequence[Header],
    segments: np.ndarray,
    out: torch.Tensor,
    add: bool,
    scale: float,
) -> None:
    memory, count = coder.memory, len(payloads)
    n, n_blocks = int(geometry.block_at[-1]), geometry.n_blocks
    starts, data = _send(coder, payloads, [part["payload_bytes"] for part in unpacked])
    jobs = np.stack([jobs for jobs, _ in found])
    sources = np.stack([sources for _, sources in found])
    raw_at = np.stack([part["raw_at"] for part in unpacked])
    n_tables = 0
    for p, start in enumerate(starts):
        jobs[p, :, f.BYTE_AT.value] += start
        jobs[p, :, f.SYMBOL_AT.value] += p * n
        stream = jobs[p, :, f.MODE.value] == f.STREAM.value
        jobs[p, stream, f.TABLE.value] += n_tables
        n_tables += len(unpacked[p]["freq"])
        coded = sources[p, :, f.CODE_AT.value] >= 0
        sources[p, coded, f.CODE_AT.value] += p * n
        sources[p, :, f.LOW_BIT_AT.value] += 8 * start
        raw_at[p] += start
    sides = np.stack([np.append(part["sides"], np.float32(0)) for part in unpacked])
    freq = np.concatenate([part["freq"] for part in unpacked]).astype(np.int32)
    classes = bool((jobs[:, :, f.CLASSES.value] > 1).any())
    there = memory.upload(
        "decode",
        {
            "jobs": jobs,
            "sources": sources,
            "raw_at": raw_at // 4,
            "kinds": np.stack([part["kinds"] for part in unpacked]).astype(np.int32),
            "steps": np.stack([part["steps"] for part in unpacked]),
            "sides": sides.astype(np.float32),
            "dithered": (segments["reconstruction"] == DITHERED).astype(np.int32),
            "calls": np.stack([call_words(header) for header in headers]),
            "freq": freq,
            "starts": (np.cumsum(freq, axis=-1) - freq).astype(np.int32),
            **_checks(unpacked, starts),
        },
    )
    codes = memory.buffer("decoded", max(count * n, 1), torch.uint8)
    floats = memory.buffer("decoded_floats", max(count * n_blocks, 1), torch.int32)
    exact = memory.buffer("decoded_exact", max(count * n, 1), torch.float32)
    error = memory.buffer("error", 2 * count, torch.int32)
    error.zero_()
    if there["n_words"].numel():
        check_blocks[(there["n_words"].numel(),)](
            data.view(torch.int32), there["word_at"], there["n_words"], there["checksum"],
            there["blocks"], *coder.checksum_tables, error[count:], LANES=LANES, num_warps=8,
        )  # fmt: skip
    if n_blocks:
        slots = memory.buffer("slots", n_tables * 4096, torch.int32)
        fill_slots[(n_tables, 4096 // SLOT_WIDTH)](
            there["freq"], there["starts"], slots, WIDTH=SLOT_WIDTH, num_warps=4
        )
        order = memory.buffer("sent_order", count * n_blocks * 512, torch.int32)
        if classes:
            order_sent_groups[(count * n_blocks,)](
                data, there["jobs"], order, error, n_blocks, num_warps=4
            )
        decode_streams[(count * n_blocks,)](
            data, data.view(torch.int16), data.view(torch.int32), there["jobs"], slots, order,
            codes, floats, error, n_blocks, CLASSES=classes, **ONE_WARP,
        )  # fmt: skip
        spread_escapes[(count * n_blocks,)](
            data, data.view(torch.int32), there["jobs"], codes, exact, error, n_blocks,
            TILE=TILE, num_warps=4,
        )  # fmt: skip
    for q in geometry.tiles:
        tile_piece = geometry.device[f"tile_piece{q}"]
        sum_tiles[(tile_piece.numel(),)](
            out, codes, exact, data, data.view(torch.float32), tile_piece,
            geometry.device[f"tile_start{q}"], geometry.device["pieces"], there["sources"], floats,
            there["kinds"], there["steps"], there["raw_at"], there["dithered"], there["sides"],
            there["calls"], levels.values, levels.counts, error, float(scale),
            count, len(geometry.pieces), n_blocks, len(segments), sides.shape[1],
            QUANTIZER=q, ADD=add, GROUPS=GROUPS, num_warps=4, **EXACT,
        )  # fmt: skip
    bad = memory.download("error", error)
    memory.wait()
    if (wrong := bad[count:]).any():
        p = int(np.flatnonzero(wrong)[0])
        raise PayloadError(
            f"payload of rank {headers[p].rank}: checksum of block {wrong[p] - 1} does not match"
        )
    if bad.any():
        raise PayloadError(
            f"payload of rank {headers[int(np.flatnonzero(bad)[0])].rank}: a malformed stream, an "
            "escape that is not finite, or a symbol beyond its levels"
        )


def _send(
    coder: Coder, payloads: Sequence[torch.Tensor], lengths: Sequence[int]
) -> tuple[list[int], torch.Tensor]:
    """(byte at which each payload starts, all of them on the device).

    What lies neither there nor in pinned memory goes through staging that does.
    """
    room = [-(-length // 16) * 16 for length in lengths]
    starts = [sum(room[:p]) for p in range(len(room))]
    there = coder.memory.buffer("payloads", sum(room), torch.uint8)
    host = coder.memory.staging("payloads", sum(room))
    for payload, start, length in zip(payloads, starts, lengths, strict=True):
        source = payload[:length]
        if source.device.type == "cpu" and not source.is_pinned():
            host[start : start + length].copy_(source)
            source = host[start : start + length]
        there[start : start + length].copy_(source, non_blocking=True)
    return starts, there
