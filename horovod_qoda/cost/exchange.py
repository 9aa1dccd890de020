"""What is exchanged, how, and how long its payloads are."""

from __future__ import annotations

import math
from dataclasses import dataclass

RAW = ("fp32", "fp16")
UNBIASED = (*RAW, "allgather", "scatter_reduce", "two_level")
"""Ways whose mean is unbiased. PowerSGD's is not: its speed says nothing of its quality."""
TOPOLOGIES = (*UNBIASED, "powersgd")

# Of docs/wire-format.md: header, one record a segment, one row of the block table.
HEADER, SEGMENT, BLOCK_ROW = 112, 8, 12
BLOCK = 65536
# 32 states of 32 bits open a block; their low halves carry the block's last symbols.
STATES = 64
# A frame around each payload, room for a longer one, and rounding up to 64 bytes.
FRAME, SLACK, PAD = 48, 1.02, 64
# Probabilities of 12 bits and the inline table, as docs/performance.md measured them.
CODER = 1.002
TABLE = 24

ALIGN, MIN_CHUNK = 1024, 16 * 1024


@dataclass(frozen=True)
class Exchange:
    """What is exchanged and how.

    Attributes:
        coordinates: of all layers together.
        ranks: K.
        topology: one of `TOPOLOGIES`; the first two are Horovod's ring all-reduce.
        bits: coded bits a coordinate and stage.
        layers, types: how many share the coordinates, and how many code tables there are.
        buffer: float32 bytes exchanged at once (``fusion_mb``); Horovod's own fusion for raw ones.
        ranks_per_host: R, numbered host by host; K is a multiple of it.
        low_rank: of PowerSGD's matrices.

    Raises:
        ValueError: a number that cannot be, or an unknown topology.
    """

    coordinates: int
    ranks: int
    topology: str
    bits: float = 3.0
    layers: int = 1
    types: int = 1
    buffer: int = 16 * 2**20
    ranks_per_host: int = 1
    low_rank: int = 4

    def __post_init__(self) -> None:
        if self.topology not in TOPOLOGIES:
            raise ValueError(
                f"topology must be one of {', '.join(TOPOLOGIES)}, not {self.topology!r}"
            )
        counts = ("coordinates", "ranks", "layers", "types", "buffer", "ranks_per_host", "low_rank")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.bits > 0:
            raise ValueError(f"bits must be positive, not {self.bits}")
        if self.ranks % self.ranks_per_host:
            raise ValueError(
                f"ranks must be a multiple of ranks_per_host = {self.ranks_per_host}, not "
                f"{self.ranks}: every host has as many"
            )

    @property
    def hosts(self) -> int:
        return self.ranks // self.ranks_per_host

    @property
    def buffers(self) -> int:
        return -(-4 * self.coordinates // self.buffer)

    def parts(self, ranks: int) -> int:
        """Chunks into which one buffer is cut for ``ranks`` ranks; none is shorter than 16 Ki."""
        size = -(-self.coordinates // self.buffers)
        length = max(MIN_CHUNK, -(-size // (ranks * ALIGN)) * ALIGN)
        return -(-size // length)

    @property
    def owners(self) -> int:
        """Ranks that own a chunk of one buffer in scatter-reduce."""
        return self.parts(self.ranks)


def payload_bytes(coordinates: float, segments: float, types: int, bits: float) -> float:
    """Length of a framed, padded payload (``docs/wire-format.md``)."""
    if coordinates <= 0:
        return 0.0
    blocks = math.ceil(coordinates / BLOCK)
    fixed = HEADER + SEGMENT * segments + TABLE * types + blocks * (BLOCK_ROW + STATES)
    return math.ceil(SLACK * (FRAME + fixed + CODER * bits * coordinates / 8) / PAD) * PAD
