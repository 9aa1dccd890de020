"""What one exchange did: counted and timed where it happened, consumed by whoever listens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ExchangeRecord:
    """One exchange of this rank. Times are seconds, sizes bytes, rates bits per coordinate."""

    exchange: int
    """Exchange number, from 0."""
    topology: str
    """``allgather``, ``scatter_reduce``, ``two_level`` or ``raw``."""
    coordinates: int
    """Coordinates in layers that are quantised."""
    raw_bytes: int
    """Gradient bytes as the script holds them: what an uncompressed all-reduce would take in."""
    payload_bytes: int
    """True lengths of the payloads this rank sent, all stages."""
    wire_bytes: int
    """Sizes of the tensors handed to Horovod, padding included."""
    coded_bits: float
    """Payload bits of all ranks per quantised coordinate, without raw layers; mean over stages.
    Ranks own different layers in scatter-reduce, and a rank's own payloads do not tell the mean."""
    entropy_bits: float
    """Empirical entropy of the same symbols; nan in exchanges that took no histogram."""
    encode_s: float
    decode_s: float
    exchange_s: float
    """Time during which at least one collective of this exchange was under way."""
    busy_s: float
    """From the first buffer handed over to the last mean gradient ready."""
    wait_s: float
    """Time the training thread was blocked for it."""


@dataclass
class Tally:
    """Running sums of one exchange, written by the worker and read when it has ended."""

    payload_bytes: int = 0
    wire_bytes: int = 0
    entropy_bits: float = float("nan")
    encode_s: float = 0.0
    decode_s: float = 0.0
    exchange_s: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    wait_s: float = 0.0
