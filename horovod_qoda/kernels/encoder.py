"""Floats on the device to one payload, on the host or on the device.

The host waits for the device three times (four with bucket norms), each time for a few KiB or for
the payload itself: for the norms; for the sample's counts, from which it chooses tables as the CPU
does; for the blocks' lengths; and for their checksums, with the bytes if those go to the host.
Where the CPU codes the symbols (host_coder.py): for the norms, for counts and symbols in one, and
for symbols beyond a byte, if there are any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from horovod_qoda.coding.payload import KIND_CODED, KIND_RAW, Header, max_payload_bytes
from horovod_qoda.coding.tables import Book
from horovod_qoda.kernels import fields as f
from horovod_qoda.kernels import host_coder, meta, tables
from horovod_qoda.kernels.checksum import LANES, checksum_blocks
from horovod_qoda.kernels.classes import IDS_EACH, find_ids, order_groups
from horovod_qoda.kernels.coder import EXACT, ONE_WARP, Coder, call_words
from horovod_qoda.kernels.geometry import SAMPLE_GROUPS
from horovod_qoda.kernels.job import Job, add_counts
from horovod_qoda.kernels.pack import pack_blocks
from horovod_qoda.kernels.rans import encode_streams
from horovod_qoda.kernels.sample import count_all, count_sample
from horovod_qoda.kernels.sides import find_kinds, find_sides

PLAIN_INFO = 1 << 31
TILE = 1024


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
        job = Job(
            coder, geometry, level_tables, values, segments, kinds, sides, code_at, n_symbols,
            uploaded,
        )  # fmt: skip
        sent_coordinates = int(geometry.block_at[-1]) + job.raw_values
        small = there is None and n_symbols.any() and sent_coordinates <= coder.host_coded
        sent = host_coder.send(job) if small else None
        chosen = _choose_tables(job, book)
        middle = meta.front(
            segments, kinds, sides, geometry.side_at, chosen, level_tables.counts_host
        )
        at = meta.HEADER_BYTES + len(middle) + 12 * (geometry.n_blocks + len(job.raw_lengths()))
        if sent is not None and not any(table.shift for table in chosen):
            rows = host_coder.code(job, sent, chosen, out.numpy()[at:], histogram)
        else:
            rows = _code_there(job, chosen, histogram, (out if there is None else there)[at:])
        length = meta.write(
            out.numpy(), middle, header, segments, rows,
            header.book_hash if book is None else book.hash,
            level_tables.checksum if len(levels) else 0,
        )  # fmt: skip
        if there is not None:
            there[:at].copy_(out[:at], non_blocking=True)
    return length


def _choose_tables(job: Job, book: Book | None) -> list[tables.Table]:
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


def _code_there(
    job: Job,
    chosen: list[tables.Table],
    histogram: npt.NDArray[np.int64] | None,
    to: torch.Tensor,
) -> np.ndarray:
    """Codes all blocks on the device and brings them to where the payload lies; their rows of the
    block table, uint32 [blocks, 3]."""
    places = _code(job, chosen, histogram)
    lengths, infos, body = _pack(job, places)
    to[: body.numel()].copy_(body, non_blocking=True)
    checksums = job.coder.memory.download("checksums", _checksums(job.coder, body, lengths))
    job.coder.memory.wait()
    return np.stack([lengths, infos, checksums.view(np.uint32)], axis=1)


def _code(
    job: Job, chosen: list[tables.Table], histogram: npt.NDArray[np.int64] | None
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
    n_counts = 0 if histogram is None else len(geometry.types) * 256
    symbols = job.quantize(there["coding"], n_counts)
    codes = symbols.codes
    block_type = geometry.device["block_type"]
    words = memory.buffer("words", n, torch.int16)
    states = memory.buffer("states", n_blocks * 32, torch.int32)
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
        codes, order, there["places"], block_type, there["look_up"], words, states,
        symbols.counters, CLASSES=classes, **ONE_WARP,
    )  # fmt: skip
    if histogram is not None:
        count_all[(n_blocks,)](
            codes, symbols.exact, there["places"], block_type, symbols.more, TILE=TILE,
            num_warps=4,
        )  # fmt: skip
    found = memory.download("counters", symbols.counters)
    memory.wait()
    per_block = job.block_counters(found)
    if histogram is not None:
        add_counts(histogram, geometry.types, found[-n_counts:])
    places[:, f.ESCAPES.value] = per_block[:, f.N_ESCAPES.value]
    places[:, f.FLOATS.value] = per_block[:, f.N_FLOATS.value]
    places[:, f.WORDS.value] = per_block[:, f.N_WORDS.value]
    # The tail is kept where BODY_AT will be, until the info field is made of it.
    places[:, f.BODY_AT.value] = per_block[:, f.N_TAIL.value]
    return places


def _pack(job: Job, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
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
    raw_values = job.raw_values
    body = memory.buffer("body", (coded_bytes + 4 * raw_values + 15) // 16 * 16, torch.uint8)
    there = memory.upload("places", {"places": places})
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
    job.copy_raw(body.view(torch.float32)[coded_bytes // 4 :])
    raw_lengths = job.raw_lengths()
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


assert KIND_CODED == f.CODED.value and KIND_RAW == f.RAW.value
