"""Code tables for a payload made on a device: the CPU's choice, from the same counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import horovod_qoda.native._codec as _codec
from horovod_qoda.coding.tables import SCALE, Book

LARGE_SHARE = 0.001  # of |k| > 127, above which low bits may be sent apart
SHIFTS = (0, 2, 4)
_ABSENT, _INLINE, _AGREED = 0, 1, 2


@dataclass(frozen=True)
class Table:
    """Code table of one type in one payload (docs/wire-format.md, "Code tables")."""

    kind: int
    freq: np.ndarray
    shift: int

    @property
    def code_range(self) -> tuple[int, int]:
        used = np.flatnonzero(self.freq[1:]) + 1
        return int(used[0]), int(used[-1])

    @property
    def certain(self) -> int:
        """The code that always occurs, or 0."""
        return certain_code(self.freq) if self.shift == 0 else 0

    def to_bytes(self) -> bytes:
        head = bytes([self.kind | self.shift << 4])
        return head + (_codec.serialize(self.freq) if self.kind == _INLINE else b"")


def certain_code(freq: np.ndarray) -> int:
    found = np.flatnonzero(freq == SCALE)
    return int(found[0]) if len(found) else 0


def choose(
    counts: np.ndarray, coordinates: int, exact: bool, type_id: int, book: Book | None
) -> Table:
    """The table for a type.

    Args:
        counts: [3, 256], counts of the sample's codes for the shifts 0, 2 and 4.
        coordinates: coded coordinates of the type.
        exact: the sample holds all of them.
    """
    if coordinates == 0:
        return Table(_ABSENT, np.zeros(256, np.uint16), 0)
    counts = counts.astype(np.uint64)
    symbols = float(counts[0].sum())
    scale = coordinates / symbols
    freq, shift = _codec.normalize(counts[0], bool(exact)), 0
    bits = _codec.coded_bits(freq, counts[0]) * scale
    if counts[0][0] > LARGE_SHARE * symbols:
        for s, shifted in zip(SHIFTS[1:], counts[1:], strict=True):
            candidate = _codec.normalize(shifted, False)
            candidate_bits = (_codec.coded_bits(candidate, shifted) + s * symbols) * scale
            if candidate_bits < bits:
                freq, shift, bits = candidate, s, candidate_bits
    if book is not None and type_id < len(book.tables) and book.tables[type_id][0]:
        agreed = np.ascontiguousarray(book.tables[type_id])
        table_bits = 8.0 * len(_codec.serialize(freq))
        if _codec.coded_bits(agreed, counts[0]) * scale <= bits + table_bits:
            return Table(_AGREED, agreed, 0)
    return Table(_INLINE, freq, shift)


def encoder_rows(tables: list[Table]) -> tuple[np.ndarray, np.ndarray]:
    """(coding, int32 [n_types, 3]: lowest and highest h, shift; look-up, int32 [n_types, 512]).

    The look-up has start << 16 | frequency, then reciprocals for `rans.push`.
    """
    coding = np.zeros((len(tables), 3), np.int32)
    look_up = np.zeros((len(tables), 512), np.uint32)
    for row, table in enumerate(tables):
        if table.kind == _ABSENT:
            continue
        low, high = table.code_range
        coding[row] = low - 128, high - 128, table.shift
        freq = table.freq.astype(np.uint64)
        start = np.cumsum(freq) - freq
        look_up[row, :256] = start << np.uint64(16) | freq
        reciprocal = np.uint64(1 << 32) // np.maximum(freq, np.uint64(1))
        look_up[row, 256:] = np.minimum(reciprocal, np.uint64(0xFFFFFFFF))
    return coding, look_up.view(np.int32)
