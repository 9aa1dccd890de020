"""Floats to one checked payload of bytes and back: the Python face of the native codec.

The bytes are described in ``docs/wire-format.md``. All functions work on NumPy arrays in place,
without copies, and release the GIL while they run. The bytes do not depend on the CPU's instruction
set or on ``threads``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

import horovod_qoda.native._codec as _codec

if TYPE_CHECKING:
    from horovod_qoda.coding.tables import Book

PayloadError = _codec.PayloadError

RAW, ONE_STREAM, LEVELS, MAXMIN = 0, 1, 2, 3
ROUNDED, DITHERED = 0, 1
LINF, L2 = 0, 1

# What a payload says about a segment: all zero, coded, float32 as is, or NaN/Inf seen.
KIND_ZERO, KIND_CODED, KIND_RAW, KIND_NONFINITE = 0, 1, 2, 3

HEADER_BYTES = 112
_AT_META_BYTES = 104

SEGMENT = np.dtype(
    [
        ("offset", np.uint64),
        ("numel", np.uint64),
        ("index", np.uint64),
        ("layer", np.uint32),
        ("type", np.uint16),
        ("quantizer", np.uint8),
        ("reconstruction", np.uint8),
        ("nonfinite", np.uint8),
        ("norm", np.uint8),
        ("bucket", np.uint32),
        ("levels", np.uint16),
        ("step", np.float32),
    ],
    align=True,
)
"""One row per segment of the chunk being coded.

==============  ====================================================================================
offset          first coordinate in the float32 array passed along
numel           number of coordinates, > 0
index           index of the first coordinate inside its layer; a multiple of 1024
layer           number of the layer, below 2**24; enters the random counter
type            code table id; segments of one type are contiguous
quantizer       0 raw float32, 1 one stream (``step``), 2 levels (bucket norms), 3 max-min
reconstruction  one stream: 0 rounded, 1 dithered
nonfinite       1: only this flag travels, and the segment decodes to NaN
norm            levels: 0 = L-infinity, 1 = L2
bucket          levels, max-min: coordinates per norm, a power of two 16..1024; 0 = whole segment
levels          index into the level sequences passed along; max-min with n entries uses 2n values
step            one stream: step size; 0 = all zero, nothing coded; outside [2**-120, 2**120] the
                segment travels raw
==============  ====================================================================================

When decoding, ``nonfinite`` and ``step`` are taken from the payload and ignored here.
"""

Bytes = npt.NDArray[np.uint8] | bytes | bytearray | memoryview
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Header:
    """What a payload says about itself.

    The first six fields must match on decoding. ``key``: seed in bits 0..31, rank in bits 32..51,
    optimizer id in bits 52..63. The three scalars may be written later with `seal`.
    """

    layout_hash: int
    exchange: int
    rank: int
    stage: int
    chunk: int
    key: int
    sum_sq: float = 0.0
    sum_sq_diff: float = 0.0
    aux: float = 0.0
    book_hash: int = 0

    def as_tuple(self) -> tuple[float, ...]:
        # dataclasses.astuple copies deeply: 30 us, a hundred times as long.
        return tuple(vars(self).values())


def _as_bytes(payload: Bytes) -> npt.NDArray[np.uint8]:
    if isinstance(payload, np.ndarray):
        return payload
    return np.frombuffer(payload, dtype=np.uint8)


def _flat_levels(levels: Sequence[npt.ArrayLike]) -> list[list[float]]:
    return [np.asarray(sequence, dtype=np.float32).tolist() for sequence in levels]


def encode(
    values: Floats,
    segments: npt.NDArray[np.void],
    header: Header,
    out: npt.NDArray[np.uint8],
    *,
    book: Book | None = None,
    levels: Sequence[npt.ArrayLike] = (),
    histogram: npt.NDArray[np.int64] | None = None,
    threads: int = 1,
    decoded: Floats | None = None,
) -> int:
    """Writes one payload into ``out`` and returns its length in bytes.

    Args:
        values: float32 coordinates, 1-D and contiguous.
        segments: rows of `SEGMENT`; segments of one type are contiguous.
        header: written as given; ``book_hash`` is replaced by the book's where one is passed.
        out: uint8, at least `max_payload_bytes` long; bytes behind the payload are undefined.
        book: agreed code tables. A type's table travels inline where that is cheaper.
        levels: level sequences, each rising from 0 to 1, that ``segments["levels"]`` refers to.
        histogram: int64 [n_types, 256]; the exact counts of this payload's symbols are added.
            Column 0 counts ``|k| > 127``, column k + 128 counts symbol k.
        threads: worker threads, the caller's included.
        decoded: float32, as long as ``values`` and apart from them; receives what `decode` will
            give, bit for bit, at the segments' coordinates. Cheaper than decoding: symbols and
            random numbers are at hand.

    Raises:
        ValueError: a segment breaks its contract, ``out`` is too small, ``decoded`` has another
            size than ``values`` or overlaps them, or values hold NaN or Inf where ``nonfinite``
            is 0. ``out`` and ``decoded`` are then undefined.
    """
    tables, book_hash = (None, 0) if book is None else (book.tables, book.hash)
    return _codec.encode(
        values,
        segments,
        header.as_tuple(),
        out,
        tables,
        book_hash,
        _flat_levels(levels),
        histogram,
        threads,
        decoded,
    )


def decode(
    payload: Bytes,
    segments: npt.NDArray[np.void],
    out: Floats,
    *,
    expect: Header,
    book: Book | None = None,
    levels: Sequence[npt.ArrayLike] = (),
    add: bool = False,
    scale: float = 1.0,
    threads: int = 1,
) -> Header:
    """Decodes a payload into ``out``, or adds ``scale`` times its values to ``out``.

    Args:
        payload: uint8; padding behind the true length is ignored.
        segments: the rows used for encoding (``step`` and ``nonfinite`` are ignored).
        out: float32, 1-D and contiguous; only the segments' coordinates are written.
        expect: layout_hash, exchange, rank, stage, chunk and key must match the payload's; so must
            the book's hash (``expect.book_hash`` where ``book`` is None).

    Returns:
        The payload's header.

    Raises:
        PayloadError: anything is wrong with the payload. Checksums are verified before ``out`` is
            touched; for bytes made to pass them, ``out`` may be partly written.
    """
    return decode_sum(
        [payload],
        segments,
        out,
        expect=[expect],
        book=book,
        levels=levels,
        add=add,
        scale=scale,
        threads=threads,
    )[0]


def decode_sum(
    payloads: Sequence[Bytes],
    segments: npt.NDArray[np.void],
    out: Floats,
    *,
    expect: Sequence[Header],
    book: Book | None = None,
    levels: Sequence[npt.ArrayLike] = (),
    add: bool = False,
    scale: float = 1.0,
    threads: int = 1,
) -> list[Header]:
    """Decodes several payloads of the same segments and sums them in the order given.

    The result is bit for bit that of calling `decode` on one after the other with ``add=True``
    from the second on, but the output passes through the cache once.
    """
    if not payloads:
        raise ValueError("decode_sum needs at least one payload")
    tables, book_hash = (None, 0) if book is None else (book.tables, book.hash)
    headers = _codec.decode(
        [_as_bytes(payload) for payload in payloads],
        segments,
        out,
        [header.as_tuple() for header in expect],
        tables,
        expect[0].book_hash if book is None else book_hash,
        _flat_levels(levels),
        add,
        scale,
        threads,
    )
    return [Header(*header) for header in headers]


def max_payload_bytes(segments: npt.NDArray[np.void]) -> int:
    """A capacity that any payload of these segments fits into (about 4 bytes a coordinate)."""
    return _codec.max_payload_bytes(segments)


def peek(payload: Bytes) -> tuple[Header, int]:
    """Header and true length of a payload whose magic, version and meta part hold.

    Blocks are not read, and need not be there; decoding checks them.

    Raises:
        PayloadError: otherwise.
    """
    header, length = _codec.peek(_as_bytes(payload))
    return Header(*header), length


def meta_bytes(payload: npt.NDArray[np.uint8]) -> int:
    """Length of the meta part, header included, as the header has it; nothing is checked."""
    return int.from_bytes(payload[_AT_META_BYTES : _AT_META_BYTES + 4].tobytes(), "little")


def seal(
    payload: npt.NDArray[np.uint8], sum_sq: float, sum_sq_diff: float, aux: float = 0.0
) -> None:
    """Rewrites the three scalars and the checksum over them, in place, as `peek` reads.

    Raises:
        PayloadError: the meta part was not intact before.
    """
    _codec.seal(payload, sum_sq, sum_sq_diff, aux)


def steps(payload: Bytes) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Steps (float32, 0 where a segment has none) and kinds (``KIND_…``) of all segments.

    Raises:
        PayloadError: as `peek`.
    """
    return _codec.steps(_as_bytes(payload))


def copy_stats(src: Floats, dst: Floats | None = None, threads: int = 1) -> tuple[float, bool]:
    """Copies ``src`` to ``dst`` and returns (sum of squares, whether all values are finite).

    The sum is taken in float64 in one fixed order: blocks of 65,536 in sequence, in each block 16
    lanes by index modulo 16, reduced by halves. It is the same on every CPU and thread count.
    """
    return _codec.copy_stats(src, dst, threads)


def sum_sq_diff(a: Floats, b: Floats, threads: int = 1) -> float:
    """Sum of squares of the float32 differences a - b, in the order of `copy_stats`."""
    return _codec.sum_sq_diff(a, b, threads)


def change_stats(now: Floats, before: Floats, threads: int = 1) -> tuple[float, bool, float]:
    """`copy_stats` of ``now`` and `sum_sq_diff` of both, the same bits, in one pass over memory."""
    return _codec.change_stats(now, before, threads)


def symbols(
    values: Floats, segments: npt.NDArray[np.void], header: Header, codes: npt.NDArray[np.uint8]
) -> None:
    """Codes k + 128 of one-stream segments into ``codes`` (uint8, as long as values), 0 for
    ``|k| > 127``: what `encode` gives its entropy coder, for use with another one."""
    _codec.symbols(values, segments, header.as_tuple(), codes)


def from_symbols(
    codes: npt.NDArray[np.uint8],
    segments: npt.NDArray[np.void],
    header: Header,
    out: Floats,
    *,
    add: bool = False,
) -> None:
    """Reconstructs what `symbols` wrote, as `decode` does; a code 0 counts as k = 0."""
    _codec.from_symbols(codes, segments, header.as_tuple(), out, add)


def simd() -> str:
    """The instruction set in use: "avx512", "avx2" or "portable" (HOROVOD_QODA_SIMD)."""
    return _codec.simd()
