"""What one exchange costs: bytes, messages and seconds, as pure functions of sizes and speeds.

The formulas, their derivation and how well they predict are in ``docs/scaling.md``. All times are
seconds, sizes bytes, bandwidths bytes a second in each direction of a rank's link.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

TOPOLOGIES = ("fp32", "fp16", "allgather", "scatter_reduce")
RAW = ("fp32", "fp16")

# Of docs/wire-format.md: header, one record a segment, one row of the block table.
HEADER, SEGMENT, BLOCK_ROW = 112, 8, 12
BLOCK = 65536
# 32 states of 32 bits open a block; their low halves carry the block's last symbols.
STATES = 64
# A frame around each payload, room for a longer one, and rounding up to 64 bytes.
FRAME, SLACK, PAD = 8, 1.02, 64
# Probabilities of 12 bits and the inline table, as docs/performance.md measured them.
CODER = 1.002
TABLE = 24

ALIGN, MIN_CHUNK = 1024, 16 * 1024


@dataclass(frozen=True)
class Machine:
    """Speeds of the ranks and of what joins them.

    Measured by ``horovod-qoda doctor --json FILE``. The codec's defaults are one core of a
    Sapphire-Rapids Xeon with AVX-512; those of the network are assumptions (docs/scaling.md).
    """

    bandwidth: float = 125e6
    """Of a rank's link, each way; 1 Gbit/s."""
    latency: float = 50e-6
    """One message from rank to rank."""
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
    """

    coordinates: int
    ranks: int
    topology: str
    bits: float = 3.0
    layers: int = 1
    types: int = 1
    buffer: int = 16 * 2**20

    def __post_init__(self) -> None:
        if self.topology not in TOPOLOGIES:
            raise ValueError(
                f"topology must be one of {', '.join(TOPOLOGIES)}, not {self.topology!r}"
            )
        for name in ("coordinates", "ranks", "layers", "types", "buffer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not self.bits > 0:
            raise ValueError(f"bits must be positive, not {self.bits}")

    @property
    def buffers(self) -> int:
        return -(-4 * self.coordinates // self.buffer)

    @property
    def owners(self) -> int:
        """Chunks of one buffer: ranks that own a part of it in scatter-reduce."""
        size = -(-self.coordinates // self.buffers)
        length = max(MIN_CHUNK, -(-size // (self.ranks * ALIGN)) * ALIGN)
        return -(-size // length)


@dataclass(frozen=True)
class Load:
    """What one exchange asks of the busiest rank."""

    received: float
    sent: float
    messages: int
    collectives: int
    cpu: float
    """Seconds of one core, the wire's own not included."""


def payload_bytes(coordinates: float, segments: float, types: int, bits: float) -> float:
    """Length of a framed, padded payload (``docs/wire-format.md``)."""
    if coordinates <= 0:
        return 0.0
    blocks = math.ceil(coordinates / BLOCK)
    fixed = HEADER + SEGMENT * segments + TABLE * types + blocks * (BLOCK_ROW + STATES)
    return math.ceil(SLACK * (FRAME + fixed + CODER * bits * coordinates / 8) / PAD) * PAD


def load(exchange: Exchange, machine: Machine) -> Load:
    """Bytes, messages and CPU time of one exchange at the busiest rank."""
    d, ranks, buffers = exchange.coordinates, exchange.ranks, exchange.buffers
    if ranks == 1:
        return Load(0.0, 0.0, 0, 0, 0.0)
    if exchange.topology in RAW:
        size = d * (4 if exchange.topology == "fp32" else 2)
        each = 2 * (ranks - 1) / ranks * size
        cpu = d * machine.add * (ranks - 1) / ranks
        if exchange.topology == "fp16":
            cpu += d * machine.cast
        return Load(each, each, 2 * (ranks - 1) * buffers, buffers, cpu)
    part, layers = d / buffers, max(1.0, exchange.layers / buffers)
    if exchange.topology == "allgather":
        whole = payload_bytes(part, layers, exchange.types, exchange.bits)
        # A ring: what arrives is passed on, so as much is sent as is received.
        each = buffers * (ranks - 1) * whole
        cpu = d * (machine.copy + machine.encode + ranks * machine.decode)
        return Load(each, each, (ranks - 1) * buffers, buffers, cpu)
    owners = exchange.owners
    chunk = payload_bytes(part / owners, max(1.0, layers / owners), exchange.types, exchange.bits)
    # The owner of a chunk in every buffer: its own part of both stages stays where it is.
    each = buffers * (ranks - 1 + owners - 1) * chunk
    own = part / owners * buffers
    cpu = d * (machine.copy + machine.encode + machine.decode)
    cpu += own * (ranks * machine.decode + machine.encode)
    return Load(each, each, 2 * (ranks - 1) * buffers, 2 * buffers, cpu)


def seconds(exchange: Exchange, machine: Machine) -> float:
    """One exchange, from the last gradient to the last mean, nothing hidden behind backward.

    Within a buffer coding and sending follow each other; between B buffers they overlap, as far as
    cores and link allow.
    """
    need = load(exchange, machine)
    if not need.messages:
        return 0.0
    slowed = 1 / min(1.0, machine.cores)
    coding = need.cpu * slowed
    stack = (need.received + need.sent) * machine.wire_cpu * slowed
    wire = max(need.received, need.sent) / machine.bandwidth
    one_by_one = coding + max(wire, stack)
    side_by_side = max(coding + stack, wire)
    moving = side_by_side + (one_by_one - side_by_side) / exchange.buffers
    # All ranks agree on what is ready in a tree before anything is sent.
    negotiation = machine.start + 2 * math.log2(exchange.ranks) * machine.latency
    return moving + need.messages * machine.latency + need.collectives * negotiation


def step(compute: float, exchange_s: float, hidden: float = 0.0) -> float:
    """A training step: compute, and the part of the exchange that backward does not hide."""
    if not 0 <= hidden <= 1:
        raise ValueError(f"hidden must be a share between 0 and 1, not {hidden}")
    return compute + (1 - hidden) * exchange_s


def crossover(exchange: Exchange, machine: Machine, against: str = "fp32") -> float:
    """Bandwidth in bytes a second above which ``against`` is as fast or faster.

    0 where the compressed exchange loses on every link, infinity where it never does.
    """
    rival = replace(exchange, topology=against)

    def gain(bandwidth: float) -> float:
        here = replace(machine, bandwidth=bandwidth)
        return seconds(rival, here) - seconds(exchange, here)

    low, high = 1e3, 1e13
    if gain(low) <= 0:
        return 0.0
    if gain(high) > 0:
        return math.inf
    # What compression saves is a multiple of 1 / bandwidth, what it costs does not depend on it.
    while high / low > 1.0001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if gain(middle) > 0 else (low, middle)
    return low


def best(exchange: Exchange, machine: Machine) -> str:
    """The fastest of `TOPOLOGIES`."""
    return min(TOPOLOGIES, key=lambda t: seconds(replace(exchange, topology=t), machine))


def link_bytes(topology: str, wire_bytes: float, ranks: int) -> float:
    """Bytes that one rank receives over its link in one exchange (and sends: all are symmetric).

    `wire_bytes` is what a rank hands to Horovod. With K ranks a ring moves

    - ``raw``, an all-reduce of W bytes: 2 (K−1)/K · W;
    - ``allgather`` of W bytes from every rank: (K−1) · W;
    - ``scatter_reduce``, an all-to-all of A bytes, of which 1/K stay, then an all-gather of this
      rank's chunk of B bytes: (K−1)/K · A + (K−1) · B. Both stages code the same number of bits,
      so A = K·B and W = A + B, which makes it 2 (K−1)/(K+1) · W.

    Raises:
        ValueError: unknown topology, or ranks < 1.
    """
    if ranks < 1:
        raise ValueError(f"ranks must be at least 1, not {ranks}")
    factors = {
        "raw": 2 * (ranks - 1) / ranks,
        "allgather": ranks - 1,
        "scatter_reduce": 2 * (ranks - 1) / (ranks + 1),
    }
    if topology not in factors:
        raise ValueError(f"topology must be one of {', '.join(factors)}, not {topology!r}")
    return factors[topology] * wire_bytes


def predict(
    topology: str,
    ranks: int,
    wire_bytes: float,
    bits_per_second: float,
    *,
    compute_s: float,
    encode_s: float = 0.0,
    decode_s: float = 0.0,
) -> float:
    """Seconds a step would take on hosts joined by links of `bits_per_second` each way.

        compute + encode + 8 · link_bytes / bits_per_second + decode

    The parts are the measured ones. Nothing is hidden behind anything, latency and protocol
    overhead are left out, a host has one rank: an upper bound on the parts and a lower bound on the
    wire, the same for compressed and uncompressed exchanges (encode = decode = 0), so that the two
    can be compared. Ranks that share cores inflate every part.

    Raises:
        ValueError: a rate that is not positive, an unknown topology, ranks < 1.
    """
    if not bits_per_second > 0:
        raise ValueError(f"bits_per_second must be positive, not {bits_per_second}")
    wire_s = 8 * link_bytes(topology, wire_bytes, ranks) / bits_per_second
    return compute_s + encode_s + wire_s + decode_s
