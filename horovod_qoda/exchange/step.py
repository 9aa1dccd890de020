"""One exchange in progress: its number, its settings in force, and coding on behalf of the jobs."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from horovod_qoda import coding
from horovod_qoda.coding import Header, PayloadError
from horovod_qoda.coding.payload import RAW
from horovod_qoda.exchange.adaptation import STAGES, Adaptation
from horovod_qoda.exchange.codecs import Codec, Floats
from horovod_qoda.exchange.handshake import CALL, NOT_EVERYWHERE
from horovod_qoda.exchange.rate import header_bits, raw_bits
from horovod_qoda.exchange.records import Tally
from horovod_qoda.layout import Chunk, Layout
from horovod_qoda.ranges import ranged
from horovod_qoda.transport import Transport
from horovod_qoda.waiting import EQUAL_BATCHES

_TOLD = struct.Struct("<5Q")
_CHECKSUM = struct.Struct("<Q")
_FRAME = _TOLD.size + _CHECKSUM.size
"""Every payload travels behind its padded length, so that receivers find the next one; its bits
without raw layers, and the coordinates in layers that are not all zero; and the same of the
payloads whose mean it is. So all ranks know what all payloads took, those too that only an owner
has seen. Last comes the CRC-32 of these five: steps follow them, so all ranks must read
the same."""

_CALL_AT = 8
"""Where a handshake has its call: behind the length."""

SLACK = 1.02
"""Room over the longest payload seen: a tensor whose length changes makes Horovod renegotiate."""


class Outgoing:
    """What this rank sends: memory for each (stage, buffer), a padded length for each chunk."""

    def __init__(self) -> None:
        self._bytes: dict[tuple[int, int, int], int] = {}
        self._longest: dict[tuple[int, int, int], int] = {}
        self._space: dict[tuple[int, int], np.ndarray] = {}

    def space(self, key: tuple[int, int], chunks: Iterable[np.ndarray], codec: Codec) -> np.ndarray:
        """uint8 memory for framed payloads of these chunks' segment rows, one behind the other.

        The same at every exchange: the kernel clears fresh pages at a quarter of the codec's cost.
        """
        room = sum(_padded(_FRAME + coding.max_payload_bytes(rows)) for rows in chunks)
        if len(self._space.get(key, ())) < room:
            self._space[key] = codec.bytes(room)
        return self._space[key]

    def fit(self, key: tuple[int, int, int], length: int) -> int:
        """Padded length to use for a payload of ``length`` bytes; grows where it must."""
        self._longest[key] = max(length, self._longest.get(key, 0))
        if length > self._bytes.get(key, 0):
            self._bytes[key] = _padded(length)
        return self._bytes[key]

    def refit(self) -> None:
        """Shrinks every capacity to what was needed since the last call."""
        self._bytes = {key: _padded(length) for key, length in self._longest.items()}
        self._longest = {}


def _padded(length: int) -> int:
    return -(-int(length * SLACK) // 64) * 64


@dataclass
class Step:
    """What the jobs of one exchange share. Written by the worker thread only."""

    number: int
    topology: str
    """How this exchange travels, as records name it."""
    optimizer: int
    key: int
    layout: Layout
    transport: Transport
    adaptation: Adaptation
    outgoing: Outgoing
    threads: int
    wants_sums: bool
    aux: float = 0.0
    histogram: np.ndarray | None = None
    """Symbol counts, shape (stages, types, 256), int64; None where this exchange takes none."""
    tally: Tally = field(default_factory=Tally)
    told: np.ndarray = field(default_factory=lambda: np.zeros((STAGES, 4), np.int64))
    """What all ranks know of all payloads, in the columns of :mod:`rate`; the same everywhere."""
    sums: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)
    """QODA's two sums over nodes, by (buffer, chunk)."""
    received_aux: float | None = None

    def name(self, buffer: int, stage: int) -> str:
        """Name of a collective: stable from exchange to exchange, so that Horovod's cache hits."""
        return f"horovod_qoda.{self.optimizer}.buffer{buffer}.stage{stage}"

    def header(self, rank: int, stage: int, buffer: int, chunk: int) -> Header:
        return Header(
            layout_hash=self.layout.hash,
            exchange=self.number,
            rank=rank,
            stage=stage,
            chunk=buffer << 16 | chunk,
            key=self.key | rank << 32,
            aux=self.aux if rank == 0 else 0.0,
        )

    @ranged("horovod_qoda.encode")
    def encode(
        self,
        codec: Codec,
        values: Floats,
        rows: np.ndarray,
        stage: int,
        buffer: int,
        chunk: Chunk,
        decoded: Floats | None = None,
        before: tuple[int, int] = (0, 0),
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Codes one chunk into a framed, padded array of bytes ready to travel.

        Args:
            decoded: receives what the receivers will decode.
            before: of the payloads whose mean ``values`` are, what their frames say, in sum.

        The array is the beginning of ``out``, memory with room for any payload of these rows, or of
        memory that the next exchange overwrites.
        """
        begin = time.perf_counter()
        key = (stage, buffer, chunk.index)
        if out is None:
            out = self.outgoing.space((stage, buffer), [rows], codec)
        length = codec.encode(
            values,
            rows,
            self.header(self.transport.rank, stage, buffer, chunk.index),
            out[_FRAME:],
            book=self.adaptation.books[stage],
            levels=self.adaptation.levels,
            histogram=None if self.histogram is None else self.histogram[stage],
            threads=self.threads,
            decoded=decoded,
        )
        framed = _FRAME + length
        capacity = self.outgoing.fit(key, framed)
        finite, raw = rows["nonfinite"] == 0, rows["quantizer"] == RAW
        _, kinds = coding.steps(out[_FRAME:framed])
        live = finite & ~raw & (kinds != coding.KIND_ZERO)
        bits = 8 * length - raw_bits(int(rows["numel"][raw & finite].sum()))
        count = int(rows["numel"][live].sum())
        _TOLD.pack_into(out.data, 0, capacity, bits, count, *before)
        _CHECKSUM.pack_into(out.data, _TOLD.size, zlib.crc32(out.data[: _TOLD.size]))
        out[framed:capacity] = 0
        self.tally.payload_bytes += length
        self.tally.encode_s += time.perf_counter() - begin
        return out[:capacity]

    @ranged("horovod_qoda.decode")
    def decode_sum(
        self,
        codec: Codec,
        blobs: list[np.ndarray],
        ranks: Sequence[int],
        rows: np.ndarray,
        out: Floats,
        *,
        stage: int,
        buffer: int,
        chunk: int,
        scale: float = 1.0,
    ) -> list[Header]:
        """Decodes what ``ranks`` sent, sums in that order, leaves ``scale`` times it in ``out``.

        Raises:
            PayloadError: the bytes are not what those ranks should have sent.
        """
        begin = time.perf_counter()
        try:
            headers = codec.decode_sum(
                [blob[_FRAME:] for blob in blobs],
                rows,
                out,
                expect=[self.header(rank, stage, buffer, chunk) for rank in ranks],
                book=self.adaptation.books[stage],
                levels=self.adaptation.levels,
                scale=scale,
                threads=self.threads,
            )
        except PayloadError as e:
            raise PayloadError(
                f"exchange {self.number}, buffer {buffer}, stage {stage}: rank "
                f"{self.transport.rank} cannot use what rank "
                f"{' or '.join(map(str, ranks))} sent: {e}"
            ) from None
        self.tally.decode_s += time.perf_counter() - begin
        return headers

    def hear(self, blob: np.ndarray, rows: np.ndarray, stage: int) -> None:
        """Counts a payload that all ranks receive, and those whose mean it is."""
        _, bits, live, bits_before, live_before = _TOLD.unpack_from(blob.data)
        quantized = rows["quantizer"] != RAW
        count, segments = int(rows["numel"][quantized].sum()), int(quantized.sum())
        self.told[stage] += bits, count, live, header_bits(segments, live)
        if stage:
            ranks = self.transport.size
            headers = ranks * header_bits(segments, live_before // ranks)
            self.told[stage - 1] += bits_before, ranks * count, live_before, headers

    def seal(self, blob: np.ndarray, sum_sq: float, sum_sq_diff: float, aux: float) -> None:
        """Writes the three scalars into a payload of this rank."""
        coding.seal(blob[_FRAME:], sum_sq, sum_sq_diff, aux)

    def peek(self, blob: np.ndarray) -> Header:
        """The header of an intact payload."""
        return coding.peek(blob[_FRAME:])[0]

    def steps(self, blob: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Step and kind (``coding.KIND_…``) of each segment of a payload."""
        return coding.steps(blob[_FRAME:])


def sum_of_frames(blobs: list[np.ndarray]) -> tuple[int, int]:
    """Bits and live coordinates of several payloads."""
    told = [_TOLD.unpack_from(blob.data) for blob in blobs]
    return sum(x[1] for x in told), sum(x[2] for x in told)


def split_frames(received: np.ndarray) -> Iterator[np.ndarray]:
    """The framed payloads in what an all-gather returned, one after the other.

    Raises:
        PayloadError: a length or a checksum that does not fit.
    """
    start = sender = 0
    while start < len(received):
        if len(received) - start < _FRAME:
            raise PayloadError(f"{len(received) - start} bytes left over, too few for a payload")
        capacity = _TOLD.unpack_from(received.data, start)[0]
        if not capacity:
            raise PayloadError(
                f"a rank has called hvd.join(), for which Horovod sends zeros. {EQUAL_BATCHES}"
            )
        if not _FRAME < capacity <= len(received) - start:
            raise PayloadError(f"a payload claims {capacity} bytes of {len(received) - start}")
        frame = received[start : start + capacity]
        if frame[_CALL_AT : _CALL_AT + len(CALL)].tobytes() == CALL:
            raise PayloadError(NOT_EVERYWHERE)
        (checksum,) = _CHECKSUM.unpack_from(frame.data, _TOLD.size)
        if zlib.crc32(frame.data[: _TOLD.size]) != checksum:
            raise PayloadError(
                f"the frame of sender {sender}, in rank order, does not match its checksum: bytes "
                "changed on their way, or its memory is faulty; restart from the last checkpoint"
            )
        yield frame
        sender += 1
        start += capacity
