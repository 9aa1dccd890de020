"""One exchange in progress: its number, its settings in force, and coding on behalf of the jobs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from horovod_qoda import coding
from horovod_qoda.coding import Header, PayloadError
from horovod_qoda.coding.payload import RAW
from horovod_qoda.exchange.adaptation import STAGES, Adaptation
from horovod_qoda.exchange.codecs import Blob, Codec, Floats
from horovod_qoda.exchange.frames import FRAME, HEAD, read_frame, write_frame
from horovod_qoda.exchange.rate import header_bits, raw_bits
from horovod_qoda.exchange.records import Tally
from horovod_qoda.layout import Chunk, Layout
from horovod_qoda.ranges import ranged
from horovod_qoda.transport import Handle, Transport

SLACK = 1.02
"""Room over the longest payload seen: a tensor whose length changes makes Horovod renegotiate."""


class Outgoing:
    """What this rank sends: memory for each (stage, buffer), a padded length for each chunk."""

    def __init__(self) -> None:
        self._bytes: dict[tuple[int, int, int], int] = {}
        self._longest: dict[tuple[int, int, int], int] = {}
        self._space: dict[tuple[int, int], Blob] = {}

    def space(self, key: tuple[int, int], chunks: Iterable[np.ndarray], codec: Codec) -> Blob:
        """Memory for framed payloads of these chunks' segment rows, one behind the other.

        The same at every exchange: the kernel clears fresh pages at a quarter of the codec's cost.
        """
        room = sum(_padded(FRAME + coding.max_payload_bytes(rows)) for rows in chunks)
        found = self._space.get(key)
        if found is None or len(found) < room or (found.there is not None) != codec.sends:
            found = self._space[key] = codec.bytes(room)
        return found

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
        out: Blob | None = None,
    ) -> Blob:
        """Codes one chunk into a framed, padded payload ready to travel.

        Args:
            decoded: receives what the receivers will decode.
            before: of the payloads whose mean ``values`` are, what their frames say, in sum.

        It is the beginning of ``out``, memory with room for any payload of these rows, or of
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
            out[FRAME:],
            book=self.adaptation.books[stage],
            levels=self.adaptation.levels,
            histogram=None if self.histogram is None else self.histogram[stage],
            threads=self.threads,
            decoded=decoded,
        )
        framed = FRAME + length
        capacity = self.outgoing.fit(key, framed)
        finite, raw = rows["nonfinite"] == 0, rows["quantizer"] == RAW
        _, kinds = coding.steps(out.host[FRAME:framed])
        live = finite & ~raw & (kinds != coding.KIND_ZERO)
        bits = 8 * length - raw_bits(int(rows["numel"][raw & finite].sum()))
        count = int(rows["numel"][live].sum())
        write_frame(out.host, capacity, (bits, count, *before))
        codec.post(out[:capacity], FRAME, framed)
        self.tally.payload_bytes += length
        self.tally.encode_s += time.perf_counter() - begin
        return out[:capacity]

    @ranged("horovod_qoda.decode")
    def decode_sum(
        self,
        codec: Codec,
        blobs: list[Blob],
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
                [blob[FRAME:] for blob in blobs],
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

    def hear(self, blob: Blob, rows: np.ndarray, stage: int) -> None:
        """Counts a payload that all ranks receive, and those whose mean it is."""
        bits, live, bits_before, live_before = read_frame(blob)
        quantized = rows["quantizer"] != RAW
        count, segments = int(rows["numel"][quantized].sum()), int(quantized.sum())
        self.told[stage] += bits, count, live, header_bits(segments, live)
        if stage:
            ranks = self.transport.size
            headers = ranks * header_bits(segments, live_before // ranks)
            self.told[stage - 1] += bits_before, ranks * count, live_before, headers

    def seal(self, codec: Codec, blob: Blob, sum_sq: float, sum_sq_diff: float, aux: float) -> None:
        """Writes the three scalars into a payload of this rank."""
        coding.seal(blob.host[FRAME:], sum_sq, sum_sq_diff, aux)
        codec.post(blob, HEAD, len(blob))

    def allgather(self, codec: Codec, buffer: int, stage: int, blob: Blob) -> Handle:
        """Sends payloads to all ranks; :func:`frames.split_frames` reads what it returns."""
        with codec.working():
            return self.transport.allgather(self.name(buffer, stage), blob.wire)

    def alltoall(
        self, codec: Codec, buffer: int, stage: int, blob: Blob, splits: np.ndarray
    ) -> Handle:
        """Sends ``splits[r]`` bytes of payloads to each rank r, likewise."""
        with codec.working():
            return self.transport.alltoall(self.name(buffer, stage), blob.wire, splits)

    def peek(self, blob: Blob) -> Header:
        """The header of a payload whose meta part is intact."""
        return coding.peek(blob.host[FRAME:])[0]

    def steps(self, blob: Blob) -> tuple[np.ndarray, np.ndarray]:
        """Step and kind (``coding.KIND_…``) of each segment of a payload."""
        return coding.steps(blob.host[FRAME:])
