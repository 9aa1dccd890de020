"""Symbols of small payloads to pinned memory, for the CPU to code them.

A stream is coded by one warp, 32 symbols at a time, so that with few blocks most of a device waits
for that. Here a symbol goes to the host as one byte, in the same wait as the sample's counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

import horovod_qoda.native._codec as _codec
from horovod_qoda.kernels import fields as f
from horovod_qoda.kernels.job import Job, Symbols, add_counts
from horovod_qoda.kernels.tables import SIZES, Table

MOST = 127
"""Of |k| in a byte; the others follow as floats."""


@dataclass(frozen=True)
class Sent:
    """On their way to pinned memory; there after the next wait."""

    symbols: Symbols
    codes: np.ndarray
    """uint8: k + 128, or 0; block by block from `Geometry.block_at` on."""
    counters: np.ndarray
    raw: np.ndarray
    """float32, all raw values."""


def send(job: Job) -> Sent:
    """Queues the symbols of all blocks, and the raw values, to pinned memory."""
    memory, geometry = job.coder.memory, job.geometry
    whole = np.tile(np.array([-MOST, MOST, 0], np.int32), (len(geometry.types), 1))
    symbols = job.quantize(memory.upload("whole_range", {"coding": whole})["coding"])
    raw = memory.buffer("raw", job.raw_values, torch.float32)
    job.copy_raw(raw)
    return Sent(
        symbols=symbols,
        codes=memory.download("codes", symbols.codes),
        counters=memory.download("counters", symbols.counters),
        raw=memory.download("raw", raw),
    )


def code(
    job: Job,
    sent: Sent,
    chosen: list[Table],
    out: np.ndarray,
    histogram: np.ndarray | None,
) -> np.ndarray:
    """Writes all blocks, raw ones too; returns their rows of the block table, uint32 [blocks, 3].

    Args:
        chosen: table of each type, with shift 0 (low bits would need every k as a float).
        out: uint8 in host memory, 4 bytes for every coordinate.

    Raises:
        ValueError: a symbol is not finite.
    """
    geometry = job.geometry
    per_block = job.block_counters(sent.counters)
    runs = np.stack([geometry.block_at[:-1], job.n_symbols, geometry.block_type], axis=1)
    if histogram is not None:
        counts = np.zeros((len(geometry.types), 256), np.int64)
        for at, n, slot in runs:
            counts[slot] += np.bincount(sent.codes[at : at + n], minlength=256)
        add_counts(histogram, geometry.types, counts)
    floats = np.empty(0, np.float32)
    if per_block[:, f.N_FLOATS.value].any():
        floats = _fetch_large(job, sent, runs)
    tables = [
        (t.of_classes, np.zeros(SIZES, np.uint8) if t.class_of_bin is None else t.class_of_bin)
        for t in chosen
    ]
    written, rows = _codec.code_symbols(sent.codes, floats, runs, tables, out)
    raw, lengths = sent.raw.view(np.uint8), job.raw_lengths()
    out[written : written + len(raw)] = raw
    starts = np.cumsum(lengths) - lengths
    raw_rows = [
        (length, 0, _codec.crc32c(raw[at : at + length]))
        for at, length in zip(starts, lengths, strict=True)
    ]
    return np.concatenate([rows, np.array(raw_rows, np.uint32).reshape(-1, 3)])


def _fetch_large(job: Job, sent: Sent, runs: np.ndarray) -> np.ndarray:
    """k of all symbols beyond a byte, in their order: one more wait, where there are any."""
    memory = job.coder.memory
    places = [at + np.flatnonzero(sent.codes[at : at + n] == 0) for at, n, _ in runs]
    at = memory.upload("large_at", {"at": np.concatenate(places).astype(np.int64)})["at"]
    large = memory.buffer("large", at.numel(), torch.float32)
    torch.index_select(sent.symbols.exact, 0, at, out=large)
    found = memory.download("large", large)
    memory.wait()
    return found
