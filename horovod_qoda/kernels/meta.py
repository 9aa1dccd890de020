"""The meta part of a payload made on a device (docs/wire-format.md)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

import horovod_qoda.native._codec as _codec
from horovod_qoda.coding.payload import HEADER_BYTES, KIND_CODED, LEVELS, ONE_STREAM, Header
from horovod_qoda.kernels.tables import Table

_HEADER = struct.Struct("<IHHQQQQQQIIIIIIdddI")
_RECORD = np.dtype([("step", "<f4"), ("kind", "u1"), ("mode", "u1"), ("bucket", "u1"), ("n", "u1")])
_MAGIC, _VERSION = 0x41444F51, 2


def records(segments: np.ndarray, kinds: np.ndarray, level_counts: np.ndarray) -> bytes:
    out = np.zeros(len(segments), _RECORD)
    q = segments["quantizer"]
    one_stream, bucketed = q == ONE_STREAM, q >= LEVELS
    out["step"] = np.where(one_stream & (kinds == KIND_CODED), segments["step"], np.float32(0))
    out["kind"] = kinds
    mode = np.where(one_stream, segments["reconstruction"] << 2, 0)
    out["mode"] = q | mode | np.where(q == LEVELS, segments["norm"] << 3, 0)
    bucket = np.log2(np.maximum(segments["bucket"], 1)).astype(np.uint8)
    out["bucket"] = np.where(bucketed, bucket, 0)
    if bucketed.any():
        out["n"] = np.where(bucketed, level_counts[np.where(bucketed, segments["levels"], 0)], 0)
    return out.tobytes()


def levels_checksum(levels: Sequence[Sequence[float]]) -> int:
    crc = 0
    for sequence in levels:
        data = struct.pack("<I", len(sequence)) + np.array(sequence, dtype="<f4").tobytes()
        crc = _codec.crc32c(np.frombuffer(data, np.uint8), crc)
    return crc


def front(
    segments: np.ndarray,
    kinds: np.ndarray,
    sides: np.ndarray,
    side_at: np.ndarray,
    tables: Sequence[Table],
    level_counts: np.ndarray,
) -> bytes:
    """Everything between the header and the block table."""
    has_sides = (kinds == KIND_CODED) & (side_at[1:] > side_at[:-1])
    parts = [records(segments, kinds, level_counts)]
    parts += [
        sides[side_at[row] : side_at[row + 1]].astype("<f4").tobytes()
        for row in np.flatnonzero(has_sides)
    ]
    parts += [table.to_bytes() for table in tables]
    data = b"".join(parts)
    return data + b"\0" * (-len(data) % 4)


def write(
    out: np.ndarray,
    middle: bytes,
    header: Header,
    segments: np.ndarray,
    rows: np.ndarray,
    book_hash: int,
    levels_crc: int,
) -> int:
    """Writes the meta part in front of the blocks, which lie behind it already; returns the length.

    Args:
        out: uint8 of at least the payload's length.
        middle: of `front`.
        rows: length, info and checksum of each block, raw ones included; uint32 [blocks, 3].
    """
    at = HEADER_BYTES + len(middle)
    meta_bytes = at + 12 * len(rows)
    body = int(((rows[:, 0].astype(np.int64) + 3) // 4 * 4).sum())
    out[HEADER_BYTES:at] = np.frombuffer(middle, np.uint8)
    out[at:meta_bytes] = rows.astype("<u4").reshape(-1).view(np.uint8)
    head = _HEADER.pack(
        *(_MAGIC, _VERSION, HEADER_BYTES, meta_bytes + body, header.layout_hash, header.exchange),
        *(header.key, book_hash, int(segments["numel"].sum()), header.rank, header.chunk),
        *(header.stage, len(segments), len(rows), levels_crc),
        *(header.sum_sq, header.sum_sq_diff, header.aux, meta_bytes),
    )
    crc = _codec.crc32c(np.frombuffer(head, np.uint8))
    crc = _codec.crc32c(out[HEADER_BYTES:meta_bytes], crc)
    out[:HEADER_BYTES] = np.frombuffer(head + struct.pack("<I", crc), np.uint8)
    return meta_bytes + body
