"""Code tables for a payload made on a device: the CPU's choice, from the same counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import horovod_qoda.native._codec as _codec
from horovod_qoda.coding.tables import SCALE, Book

LARGE_SHARE = 0.001  # of |k| > 127, above which low bits may be sent apart
SHIFTS = (0, 2, 4)
LEAST_GAIN = 0.01  # share of the bits that classes must bring
SIZES = 29  # of groups
_ABSENT, _INLINE, _AGREED, _CLASSES = 0, 1, 2, 3


@dataclass(frozen=True)
class Table:
    """Code table of one type in one payload (docs/wire-format.md, "Code tables")."""

    kind: int
    freq: np.ndarray
    """Of class 0."""
    shift: int
    freqs: np.ndarray | None = None
    """[classes, 256] where there are several."""
    class_of_bin: np.ndarray | None = None

    @property
    def classes(self) -> int:
        return 1 if self.freqs is None else len(self.freqs)

    @property
    def of_classes(self) -> np.ndarray:
        """[classes, 256]; no row where the type has no symbols."""
        if self.freqs is not None:
            return self.freqs
        return self.freq[None] if self.kind != _ABSENT else np.zeros((0, 256), np.uint16)

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
        if self.freqs is not None:
            return head + bytes([self.classes]) + _codec.serialize(self.freqs)
        return head + (_codec.serialize(self.freq) if self.kind == _INLINE else b"")


def certain_code(freq: np.ndarray) -> int:
    found = np.flatnonzero(freq == SCALE)
    return int(found[0]) if len(found) else 0


def choose(
    counts: np.ndarray, coordinates: int, exact: bool, type_id: int, book: Book | None
) -> Table:
    """The table for a type.

    Args:
        counts: [32, 256], of `sample.count_sample`.
        coordinates: coded coordinates of the type.
        exact: the sample holds all of them.
    """
    if coordinates == 0:
        return Table(_ABSENT, np.zeros(256, np.uint16), 0)
    counts = counts.astype(np.uint64)
    plain = counts[:SIZES].sum(axis=0)
    symbols = float(plain.sum())
    scale = coordinates / symbols
    freq, shift = _codec.normalize(plain, bool(exact)), 0
    bits = _codec.coded_bits(freq, plain) * scale
    if plain[0] > LARGE_SHARE * symbols:
        for s, shifted in zip(SHIFTS[1:], counts[SIZES : SIZES + 2], strict=True):
            candidate = _codec.normalize(shifted, False)
            candidate_bits = (_codec.coded_bits(candidate, shifted) + s * symbols) * scale
            if candidate_bits < bits:
                freq, shift, bits = candidate, s, candidate_bits
    best = Table(_INLINE, freq, shift)
    table_bits = 8.0 * len(_codec.serialize(freq))
    if shift == 0:
        freqs, class_of_bin, sample_bits = _codec.choose_classes(
            counts[:SIZES], counts[31][:SIZES], freq, scale, (1 - LEAST_GAIN) * (bits + table_bits)
        )
        if len(freqs):
            best = Table(_CLASSES, freqs[0], 0, freqs, class_of_bin)
            bits, table_bits = sample_bits * scale, 8.0 * len(_codec.serialize(freqs))
    if book is not None and type_id < len(book.tables) and book.tables[type_id][0]:
        agreed = np.ascontiguousarray(book.tables[type_id])
        if _codec.coded_bits(agreed, plain) * scale <= bits + table_bits:
            return Table(_AGREED, agreed, 0)
    return best


def encoder_rows(tables: list[Table]) -> tuple[np.ndarray, np.ndarray]:
    """(coding, int32 [n_types, 3]: lowest and highest h, shift; look-up, int32 [n_types, 4, 512]).

    The look-up has, for each class, start << 16 | frequency, then reciprocals for `rans.push`.
    """
    coding = np.zeros((len(tables), 3), np.int32)
    look_up = np.zeros((len(tables), 4, 512), np.uint32)
    for row, table in enumerate(tables):
        if table.kind == _ABSENT:
            continue
        low, high = table.code_range
        coding[row] = low - 128, high - 128, table.shift
        freqs = table.of_classes.astype(np.uint64)
        start = np.cumsum(freqs, axis=1) - freqs
        look_up[row, : len(freqs), :256] = start << np.uint64(16) | freqs
        reciprocal = np.uint64(1 << 32) // np.maximum(freqs, np.uint64(1))
        look_up[row, : len(freqs), 256:] = np.minimum(reciprocal, np.uint64(0xFFFFFFFF))
    return coding, look_up.view(np.int32)


def class_rows(tables: list[Table]) -> np.ndarray:
    """Class of each size of groups, int32 [n_types, 32]."""
    rows = np.zeros((len(tables), 32), np.int32)
    for row, table in enumerate(tables):
        if table.class_of_bin is not None:
            rows[row, :SIZES] = table.class_of_bin
    return rows
