"""Speeds of the ranks and of what joins them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What the cost model knows of a cluster.

    Measured by ``horovod-qoda doctor --json FILE``, but for what is inside a host and PowerSGD's.
    The codec's defaults, and those two, are one core of a Sapphire-Rapids Xeon with AVX-512; those
    of the network are assumptions (docs/scaling.md).
    """

    bandwidth: float = 125e6
    """Of a host's link, each way; 1 Gbit/s. Its ranks share it."""
    latency: float = 50e-6
    """One message from host to host; inside a host none is counted."""
    start: float = 2e-3
    """One collective until its first message: Horovod's cycle and negotiation, and our polling."""
    encode: float = 1.0e-9
    """A coordinate, from floats to bytes, norm pass included."""
    decode: float = 0.7e-9
    """A coordinate of one payload, from bytes to the running sum."""
    copy: float = 0.7e-9
    """A coordinate into the exchange buffer and its mean back out."""
    add: float = 0.5e-9
    """A coordinate summed by an uncompressed all-reduce."""
    cast: float = 0.7e-9
    """A coordinate to float16 and back."""
    wire_cpu: float = 0.3e-9
    """CPU time of a byte sent and of one received: the kernel's TCP; 0 where the card does it."""
    cores: float = 1.0
    """Cores that a rank has; with 4 ranks on 2 cores 0.5, and everything on a CPU takes twice."""
    inside: float = 0.5e-9
    """A byte received from a rank of the same host, through its memory."""
    low_rank: float = 4.8e-9
    """A coordinate of PowerSGD whatever its rank: residual in, difference out, checks."""
    product: float = 1.4e-9
    """A coordinate and rank of PowerSGD: its part in four products with a thin matrix."""
    orthogonal: float = 1.6e-9
    """Orthogonalisation: a row times rank squared."""
    matrix: float = 17e-6
    """Orthogonalisation: a matrix, however small."""
