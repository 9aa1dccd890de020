"""Frames: what travels in front of every payload, and how receivers tell payloads apart."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from horovod_qoda.coding import HEADER_BYTES, PayloadError, meta_bytes
from horovod_qoda.exchange.codecs import Blob, Codec
from horovod_qoda.exchange.handshake import CALL, NOT_EVERYWHERE
from horovod_qoda.waiting import EQUAL_BATCHES

_TOLD = struct.Struct("<5Q")
_CHECKSUM = struct.Struct("<Q")
FRAME = _TOLD.size + _CHECKSUM.size
"""Every payload travels behind its padded length, so that receivers find the next one; its bits
without raw layers, and the coordinates in layers that are not all zero; and the same of the
payloads whose mean it is. So all ranks know what all payloads took, those too that only an owner
has seen. Last comes the CRC-32 of these five: steps follow them, so all ranks must read
the same."""

HEAD = FRAME + HEADER_BYTES
"""Bytes of a frame and the header behind it."""

_CALL_AT = 8
"""Where a handshake has its call: behind the length."""

_LOOK = 16384
"""Bytes that are fetched to begin with where payloads arrive on a device: the meta part of a buffer
of 16 MB with one norm a layer is shorter, so a second look is rare."""


def write_frame(blob: np.ndarray, capacity: int, told: tuple[int, int, int, int]) -> None:
    """Puts a frame in front of a payload that takes ``capacity`` bytes with frame and padding.

    Args:
        told: bits and live coordinates, of this payload and of those whose mean it is.
    """
    _TOLD.pack_into(blob.data, 0, capacity, *told)
    _CHECKSUM.pack_into(blob.data, _TOLD.size, zlib.crc32(blob.data[: _TOLD.size]))


def read_frame(blob: Blob) -> tuple[int, int, int, int]:
    """What :func:`write_frame` was told."""
    _, *told = _TOLD.unpack_from(blob.host.data)
    return tuple(told)


def sum_of_frames(blobs: list[Blob]) -> tuple[int, int]:
    """Bits and live coordinates of several payloads."""
    told = [read_frame(blob) for blob in blobs]
    return sum(x[0] for x in told), sum(x[1] for x in told)


def split_frames(received: Any, codec: Codec) -> Iterator[Blob]:
    """The framed payloads in what a collective returned, one after the other.

    Args:
        received: uint8, an array or a tensor on the codec's device. Of a tensor the host fetches
            frames and meta parts, and waits once for each.

    Raises:
        PayloadError: a length or a checksum that does not fit.
    """
    start = sender = 0
    end = len(received)
    while start < end:
        if end - start < FRAME:
            raise PayloadError(f"{end - start} bytes left over, too few for a payload")
        front = codec.host_bytes(received, start, min(start + _LOOK, end))
        capacity = _TOLD.unpack_from(front.data)[0]
        _check_frame(front, sender, capacity, end - start)
        stop = start + capacity
        needed = FRAME + meta_bytes(front[FRAME:]) if capacity >= HEAD else 0
        if len(front) < needed:  # a length that is not one is found when the payload is read
            front = codec.host_bytes(received, start, min(start + needed, stop))
        yield codec.arrived(received, start, stop, front[:capacity])
        sender += 1
        start = stop


def _check_frame(frame: np.ndarray, sender: int, capacity: int, left: int) -> None:
    if not capacity:
        raise PayloadError(
            f"a rank has called hvd.join(), for which Horovod sends zeros. {EQUAL_BATCHES}"
        )
    if not FRAME < capacity <= left:
        raise PayloadError(f"a payload claims {capacity} bytes of {left}")
    if frame[_CALL_AT : _CALL_AT + len(CALL)].tobytes() == CALL:
        raise PayloadError(NOT_EVERYWHERE)
    (checksum,) = _CHECKSUM.unpack_from(frame.data, _TOLD.size)
    if zlib.crc32(frame.data[: _TOLD.size]) != checksum:
        raise PayloadError(
            f"the frame of sender {sender}, in rank order, does not match its checksum: bytes "
            "changed on their way, or its memory is faulty; restart from the last checkpoint"
        )
