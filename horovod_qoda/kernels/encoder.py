"""Floats on the device to one payload, on the host or on the device.

The host waits for the device three times (four with bucket norms), each time for a few KiB or for
the payload itself: for the norms; for the sample's counts, from which it chooses tables as the CPU
does; for the blocks' lengths; and for their checksums, with the bytes if those go to the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from horovod_qoda.coding.payload import KIND_CODED, KIND_RAW, Header, max_payload_bytes
from horovod_qoda.coding.tables import Book
from horovod_qoda.kernels import fields as f
from horovod_qoda.kernels import meta, tables
from horovod_qoda.kernels.checksum import LANES, checksum_blocks
from horovod_qoda.kernels.classes import IDS_EACH, find_ids, order_groups
from horovod_qoda.kernels.coder import EXACT, ONE_WARP, Coder, LevelTables, call_words
from horovod_qoda.kernels.geometry import BLOCK, GROUPS, RAW_RUN, SAMPLE_GROUPS, Geometry
from horovod_qoda.kernels.pack import copy_pieces, pack_blocks
from horovod_qoda.kernels.quantize import quantize_tiles
from horovod_qoda.kernels.rans import encode_streams
from horovod_qoda.kernels.sample import count_all, count_sample
from horovod_qoda.kernels.sides import find_kinds, find_sides

PLAIN_INFO = 1 << 31
TILE = 1024


@dataclass
class _Job:
    """What the steps of one call share."""

    coder: Coder
    geometry: Geometry
    levels: LevelTables
    values: torch.Tensor
    segments: np.ndarray
    kinds: np.ndarray
    sides: np.ndarray
    code_at: np.ndarray
    n_symbols: np.ndarray
    there: dict[str, torch.Tensor]

    def quantizer_arguments(self) -> tuple[torch.Tensor, ...]:
        levels = self.levels
        there = self.there
        sides = (there["call"], there["inverse"], there["sides"])
        return (*sides, levels.values, levels.inverse_gaps, levels.counts)


def encode(
    coder: Coder,
    values: torch.Tensor,
    segments: npt.NDArray[np.void],
    header: Header,
    out: torch.Tensor,
    *,
    book: Book | None,
    levels: Sequence[npt.ArrayLike],
    histogram: npt.NDArray[np.int64] | None,
    there: torch.Tensor | None,
    stream: Any | None,
) -> int:
    """See `horovod_qoda.kernels.encode`."""
    coder.check_values("values", values)
    needed = max_payload_bytes(segments)
    if out.device.type != "cpu" or out.dtype != torch.uint8 or out.numel() < needed:
        raise ValueError(f"out must be a uint8 tensor in host memory of at least {needed} bytes")
    level_tables = coder.levels(levels)
    geometry = coder.geometry(segments, values.numel(), level_tables)
    with coder.memory.side_stream(stream):
        sides, finite = find_sides(coder, geometry, values, level_tables.counts_host)
        kinds = find_kinds(segments, geometry.side_at, sides, finite)
        code_at, n_symbols = geometry.symbols_of(kinds)
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.float32(1) / segments["step"]
        uploaded = coder.memory.upload(
            "call",
            {
                "call": call_words(header),
                "inverse": inverse.astype(np.float32),
                "sides": np.append(sides, np.float32(0)),
                "code_at": code_at,
            },
        )
        job = _Job(
            coder, geometry, level_tables, values, segments, kinds, sides, code_at, n_symbols,
            uploaded,
        )  # fmt: skip
        chosen = _choose_tables(job, book)
        middle = meta.front(
            segments, kinds, sides, geometry.side_at, chosen, level_tables.counts_host
        )
        places = _code(job, chosen, histogram)
        lengths, infos, body = _pack(job, places)
        at = meta.HEADER_BYTES + len(middle) + 12 * len(lengths)
        place = out if there is None else there
        place[at : at + body.numel()].copy_(body, non_blocking=True)
        checksums = coder.memory.download("checksums", _checksums(coder, body, lengths))
        coder.memory.wait()
        length = meta.write(
            out.numpy(), middle, header, segments, lengths, infos, checksums.view(np.uint32),
            header.book_hash if book is None else book.hash,
            level_tables.checksum if len(levels) else 0,
        )  # fmt: skip
        if there is not None:
            there[:at].copy_(out[:at], non_blocking=True)
    return length


def _choose_tables(job: _Job, book: Book | None) -> list[tables.Table]:
    memory, geometry = job.coder.memory, job.geometry
    sample = geometry.sample(job.kinds)
    n_types = len(geometry.types)
    counts = memory.buffer("sample_counts", max(n_types, 1) * 8192, torch.int32)
    counts.zero_()
    for q, piece in sample.piece.items():
        arrays = {"piece": piece, "start": sample.start[q], "type": sample.program_type[q]}
        there = memory.upload(f"sample{q}", arrays)
        count_sample[(len(sample.program_type[q]),)](
            job.values, counts, there["type"], there["piece"], there["start"],
            geometry.device["pieces"], *job.quantizer_arguments(),
            QUANTIZER=q, GROUPS=SAMPLE_GROUPS, num_warps=4, **EXACT,
        )  # fmt: skip
    found = memory.download("sample_counts", counts)
    memory.wait()
    found = found.reshape(-1, 32, 256)
    return [
        tables.choose(found[t], int(sample.coordinates[t]), sample.exact[t], type_id, book)
        for t, type_id in enumerate(geometry.types.tolist())
    ]


def _code(
    job: _Job, chosen: list[tables.Table], histogram: npt.NDArray[np.int64] | None
) -> np.ndarray:
    """Symbols and streams of all blocks; returns what `pack_blocks` must know of each."""
    memory, geometry = job.coder.memory, job.geometry
    n_blocks, n = geometry.n_blocks, int(geometry.block_at[-1])
    coding, look_up = tables.encoder_rows(chosen)
    certain = np.array([table.certain != 0 for table in chosen], bool)
    places = np.zeros((n_blocks, f.PLACE.value), np.int64)
    places[:, f.SYMBOLS.value] = job.n_symbols
    places[:, f.SYMBOL_AT.value] = geometry.block_at[:-1]
    if n_blocks == 0:
        return places
    coded = (job.n_symbols > 0) & ~certain[geometry.block_type]
    places[:, f.MODE.value] = np.where(coded, f.STREAM.value, f.EMPTY.value)
    places[:, f.SHIFT.value] = coding[geometry.block_type, 2]
    n_classes = np.array([table.classes for table in chosen], np.int64)
    places[:, f.N_CLASSES.value] = n_classes[geometry.block_type]
    there = memory.upload(
        "coding",
        {
            "coding": coding,
            "look_up": look_up,
            "places": places,
            "class_of_bin": tables.class_rows(chosen),
        },
    )
    codes = memory.buffer("codes", n, torch.uint8)
    exact = memory.buffer("exact", n, torch.float32)
    words = memory.buffer("words", n, torch.int16)
    states = memory.buffer("states", n_blocks * 32, torch.int32)
    n_segments = len(job.segments)
    n_counters = n_blocks * f.COUNTER.value
    n_counts = 0 if histogram is None else len(geometry.types) * 256
    counters = memory.buffer("counters", n_counters + n_segments + n_counts, torch.int32)
    counters.zero_()
    bad = counters[n_counters:]
    block_type = geometry.device["block_type"]
    for q in geometry.tiles:
        if q == 0:
            continue
        tile_piece = geometry.device[f"tile_piece{q}"]
        quantize_tiles[(tile_piece.numel(),)](
            job.values, codes, exact, counters, bad, tile_piece, geometry.device[f"tile_start{q}"],
            geometry.device["pieces"], job.there["code_at"], there["coding"], block_type,
            *job.quantizer_arguments(), QUANTIZER=q, GROUPS=GROUPS, num_warps=4, **EXACT,
        )  # fmt: skip
    classes = bool((n_classes > 1).any())
    ids = memory.buffer("ids", n_blocks * 512, torch.uint8)
    order = memory.buffer("order", n_blocks * 512, torch.int32)
    if classes:
        find_ids[(n_blocks, 512 // IDS_EACH)](
            codes, there["places"], block_type, there["class_of_bin"], ids, EACH=IDS_EACH,
            num_warps=4,
        )  # fmt: skip
        order_groups[(n_blocks,)](there["places"], ids, order, num_warps=4)
    encode_streams[(n_blocks,)](
        codes, order, there["places"], block_type, there["look_up"], words, states, counters,
        CLASSES=classes, **ONE_WARP,
    )  # fmt: skip
    if histogram is not None:
        count_all[(n_blocks,)](
            codes, exact, there["places"], block_type, bad[n_segments:], TILE=TILE, num_warps=4,
        )  # fmt: skip
    found = memory.download("counters", counters)
    memory.wait()
    _refuse_bad(found[n_counters : n_counters + n_segments])
    if histogram is not None:
        _add_counts(histogram, geometry.types, found[n_counters + n_segments :])
    per_block = found[:n_counters].reshape(n_blocks, f.COUNTER.value)
    places[:, f.ESCAPES.value] = per_block[:, f.N_ESCAPES.value]
    places[:, f.FLOATS.value] = per_block[:, f.N_FLOATS.value]
    places[:, f.WORDS.value] = per_block[:, f.N_WORDS.value]
    # The tail is kept where BODY_AT will be, until the info field is made of it.
    places[:, f.BODY_AT.value] = per_block[:, f.N_TAIL.value]
    return places


def _refuse_bad(bad: np.ndarray) -> None:
    if bad.any():
        raise ValueError(
            f"segment {np.flatnonzero(bad)[0]}: values hold NaN or Inf but nonfinite is 0, or "
            "value / step overflows"
        )


def _add_counts(histogram: np.ndarray, types: np.ndarray, counts: np.ndarray) -> None:
    if histogram.ndim != 2 or histogram.shape[1] != 256 or (types >= len(histogram)).any():
        raise ValueError("histogram must have shape [n_types, 256] with a row for every type")
    histogram[types] += counts.reshape(len(types), 256)


def _pack(job: _Job, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """(lengths, infos, all blocks on the device); the body is still being written."""
    memory, geometry = job.coder.memory, job.geometry
    n, shift = places[:, f.SYMBOLS.value], places[:, f.SHIFT.value]
    escapes, floats = places[:, f.ESCAPES.value], places[:, f.FLOATS.value]
    stream = places[:, f.MODE.value] == f.STREAM.value
    groups = np.where(places[:, f.N_CLASSES.value] > 1, (n + 127) // 128, 0)
    length = 128 + (groups * 2 + 31) // 32 * 4
    length += (escapes + 3) // 4 * 4 + 4 * floats + (n * shift + 15) // 16 * 2
    length = np.where(stream, length + 2 * places[:, f.WORDS.value], 0)
    info = np.where(stream, escapes | places[:, f.BODY_AT.value] << 17, 0)
    plain = (length + 3) // 4 * 4 > 4 * n
    length = np.where(plain, 4 * n, length)
    info = np.where(plain, PLAIN_INFO, info)
    places[plain, f.MODE.value] = f.PLAIN.value
    padded = (length + 3) // 4 * 4
    places[:, f.BODY_AT.value] = np.cumsum(padded) - padded
    coded_bytes = int(padded.sum())
    runs, raw_values = _raw_runs(job, coded_bytes // 4)
    body = memory.buffer("body", (coded_bytes + 4 * raw_values + 15) // 16 * 16, torch.uint8)
    arrays = {"places": places}
    if raw_values:
        arrays |= dict(zip(("from", "to", "n"), runs, strict=True))
    there = memory.upload("places", arrays)
    if coded_bytes:
        pack_blocks[(geometry.n_blocks,)](
            memory.buffer("codes", int(geometry.block_at[-1]), torch.uint8),
            memory.buffer("exact", int(geometry.block_at[-1]), torch.float32),
            memory.buffer("words", int(geometry.block_at[-1]), torch.int16),
            memory.buffer("states", geometry.n_blocks * 32, torch.int32),
            memory.buffer("ids", geometry.n_blocks * 512, torch.uint8),
            there["places"], body, body.view(torch.int16), body.view(torch.int32),
            TILE=TILE, num_warps=4,
        )  # fmt: skip
    if raw_values:
        copy_pieces[(there["n"].numel(),)](
            job.values, body.view(torch.float32), there["from"], there["to"], there["n"],
            TILE=RAW_RUN, num_warps=4,
        )  # fmt: skip
    raw_lengths = np.full(-(-raw_values // BLOCK), 4 * BLOCK, np.int64)
    if raw_values % BLOCK:
        raw_lengths[-1] = 4 * (raw_values % BLOCK)
    lengths = np.concatenate([length, raw_lengths]).astype(np.uint32)
    infos = np.concatenate([info, np.zeros(len(raw_lengths), np.int64)]).astype(np.uint32)
    return lengths, infos, body[: coded_bytes + 4 * raw_values]


def _checksums(coder: Coder, body: torch.Tensor, lengths: np.ndarray) -> torch.Tensor:
    """CRC32C of each block of the body with its padding, int32."""
    words = (lengths.astype(np.int64) + 3) // 4
    out = coder.memory.buffer("checksums", max(len(words), 1), torch.int32)[: len(words)]
    if len(words):
        there = coder.memory.upload("words_of_blocks", {"at": np.cumsum(words) - words, "n": words})
        steps, last = coder.checksum_tables
        checksum_blocks[(len(words),)](
            body.view(torch.int32), there["at"], there["n"], steps, last, out,
            LANES=LANES, num_warps=8,
        )  # fmt: skip
    return out


def _raw_runs(job: _Job, first: int) -> tuple[tuple[np.ndarray, ...], int]:
    """((from, to, n) in floats, for runs of at most RAW_RUN), and their total."""
    starts, targets, sizes = [], [], []
    total = 0
    for row in np.flatnonzero(job.kinds == KIND_RAW):
        s = job.segments[row]
        at = np.arange(0, int(s["numel"]), RAW_RUN, dtype=np.int64)
        starts.append(int(s["offset"]) + at)
        targets.append(first + total + at)
        sizes.append(np.minimum(int(s["numel"]) - at, RAW_RUN))
        total += int(s["numel"])
    if not starts:
        return (), 0
    return tuple(np.concatenate(c).astype(np.int64) for c in (starts, targets, sizes)), total


assert KIND_CODED == f.CODED.value and KIND_RAW == f.RAW.value
