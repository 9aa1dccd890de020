"""Code tables: probabilities of symbols as integers that sum to 4096, and the entropy they aim at.

A table row has 256 codes: code k + 128 for a symbol k in [-127, 127], and code 0 for the escape,
behind which a symbol travels as 32 raw bits. Agreed tables are made from histograms that all ranks
have summed, by one rank, and broadcast; their hash rides in every payload.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

import horovod_qoda.native._codec as _codec

CODES = 256
SCALE = 4096


@dataclass(frozen=True, eq=False)
class Book:
    """Agreed code tables, one row per type.

    Attributes:
        tables: uint16 [n_types, 256], read-only. A row is all zero (no table: that type's travels
            inline) or sums to 4096 with positive entries on one contiguous range of codes >= 1 and
            on code 0. Raises ValueError otherwise.
        hash: 64 bits over the tables.
    """

    tables: npt.NDArray[np.uint16]
    hash: int = field(init=False)

    def __post_init__(self) -> None:
        tables = np.array(self.tables, dtype=np.uint16, order="C")
        if tables.ndim != 2 or tables.shape[1] != CODES:
            raise ValueError(f"tables must have shape [n_types, {CODES}], not {tables.shape}")
        for row, table in enumerate(tables):
            _check(row, table)
        tables.flags.writeable = False
        digest = hashlib.blake2b(tables.astype("<u2").tobytes(), digest_size=8).digest()
        object.__setattr__(self, "tables", tables)
        object.__setattr__(self, "hash", int.from_bytes(digest, "little"))

    @classmethod
    def from_histogram(cls, histogram: npt.NDArray[np.int64]) -> Book:
        """Tables nearest to int64 counts [n_types, 256]; types without counts get none."""
        rows = [normalize(counts) if counts.any() else np.zeros(CODES) for counts in histogram]
        return cls(np.array(rows, dtype=np.uint16).reshape(len(rows), CODES))

    def to_bytes(self) -> bytes:
        """The tables alone, little-endian, for a broadcast."""
        return self.tables.astype("<u2").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Book:
        return cls(np.frombuffer(data, dtype="<u2").reshape(-1, CODES).astype(np.uint16))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Book) and np.array_equal(self.tables, other.tables)

    def __hash__(self) -> int:
        return self.hash


def _check(row: int, table: npt.NDArray[np.uint16]) -> None:
    if not table.any():
        return
    used = np.flatnonzero(table[1:]) + 1
    contiguous = len(used) > 0 and used[-1] - used[0] + 1 == len(used)
    if int(table.sum(dtype=np.int64)) != SCALE or not contiguous or table[0] == 0:
        raise ValueError(
            f"code table {row} must sum to {SCALE} with one contiguous range of codes and an escape"
        )


def normalize(counts: npt.ArrayLike, exact: bool = False) -> npt.NDArray[np.uint16]:
    """Frequencies [256] that sum to 4096, nearest to ``counts`` [256] in coded length.

    Rare codes at both ends lose their slot where an escape is cheaper. ``exact`` says that the
    counts are those of all symbols to be coded, so that an escape that never occurs gets no slot.
    """
    values = np.ascontiguousarray(counts)
    if values.shape != (CODES,) or (values < 0).any():
        raise ValueError(f"counts must be {CODES} non-negative integers")
    return _codec.normalize(values.astype(np.uint64), exact)


def entropy(counts: npt.ArrayLike) -> float:
    """Empirical entropy in bits per symbol of counts (any shape, pooled); 0 for no counts."""
    values = np.asarray(counts, dtype=np.float64).ravel()
    values = values[values > 0]
    if values.size == 0:
        return 0.0
    p = values / values.sum()
    return float(-(p * np.log2(p)).sum())


def entropy_bits(histogram: npt.ArrayLike) -> float:
    """Total bits of an ideal coder with one table per row of counts [n_types, 256]."""
    rows = np.atleast_2d(np.asarray(histogram))
    return float(sum(entropy(row) * row.sum() for row in rows))
