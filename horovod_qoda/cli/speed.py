"""How fast are the codec and the network between the ranks: measured, in a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from horovod_qoda.cost import Machine

COORDINATES = 2**20
BITS = 3.0
# Long enough for a median on a busy machine, short enough that nobody minds.
REPEATS, LEAST_SECONDS = 9, 0.05


@dataclass(frozen=True)
class Codec:
    """Seconds a coordinate on one rank, while all ranks measure; error of a round trip."""

    encode: float
    decode: float
    copy: float
    cast: float
    memcpy: float
    bits: float
    relative_error: float


def codec() -> Codec:
    """Times the steps of an exchange on Gaussian coordinates; casting needs PyTorch."""
    from horovod_qoda import coding
    from horovod_qoda.quantization import step_factor, step_size

    values = np.random.default_rng(0).standard_normal(COORDINATES).astype(np.float32)
    rows = np.zeros(1, coding.SEGMENT)
    rows["numel"], rows["quantizer"] = COORDINATES, 1
    rows["step"] = step_size(step_factor(BITS), coding.copy_stats(values)[0], COORDINATES)
    heads = [coding.Header(1, 0, rank, 0, 0, rank << 32) for rank in range(4)]
    space = [np.empty(coding.max_payload_bytes(rows), np.uint8) for _ in heads]
    lengths = [coding.encode(values, rows, h, s) for h, s in zip(heads, space, strict=True)]
    blobs = [s[:n] for s, n in zip(space, lengths, strict=True)]
    out = np.zeros_like(values)
    coding.decode_sum(blobs[:1], rows, out, expect=heads[:1])
    error = float(np.sum((out - values) ** 2) / np.sum(values**2))
    try:
        import torch

        floats = torch.from_numpy(values)
    except ImportError:
        floats = None

    def copy() -> None:
        coding.copy_stats(values, out)
        np.copyto(values, out)

    times = {
        "encode": lambda: coding.encode(values, rows, heads[0], space[0]),
        "decode": lambda: coding.decode_sum(blobs, rows, out, expect=heads),
        "copy": copy,
        "cast": lambda: None if floats is None else floats.half().float(),
        "memcpy": lambda: np.copyto(out, values),
    }
    each = {name: _median(run) / COORDINATES for name, run in times.items()}
    each["decode"] /= len(blobs)
    return Codec(**each, bits=8 * lengths[0] / COORDINATES, relative_error=error)


@dataclass(frozen=True)
class Network:
    """Between the ranks of this job, through Horovod: the slowest rank's view."""

    latency: float
    """Seconds of an all-reduce of one number."""
    bandwidth: float
    """Bytes a second in each direction that a ring all-reduce of float32 reaches."""


def network(transport: Any, budget: float = 4.0) -> Network:
    """Times all-reduces of one number and of two large sizes; all ranks must call it.

    Args:
        transport: of the ranks to measure.
        budget: seconds that the large sizes may take in all, about.
    """
    ranks = transport.size
    tiny = _collective(transport, 2, 50)
    small = _collective(transport, 2**18, 5)
    # A second size that takes long enough for the difference to mean something.
    grow = 16
    while grow > 2 and small * grow * 5 > budget:
        grow //= 2
    large = _collective(transport, 2**18 * grow, 5)
    moved = 2 * (ranks - 1) / ranks * 4 * 2**18 * (grow - 1)
    return Network(tiny, moved / max(large - small, 1e-9))


def _collective(transport: Any, numbers: int, rounds: int) -> float:
    """Median seconds of an all-reduce, the largest of all ranks' medians."""
    data = np.zeros(numbers, np.float32)
    name = f"horovod_qoda.doctor.{numbers}"
    for _ in range(2):
        transport.allreduce(name, data).wait()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        transport.allreduce(name, data).wait()
        times.append(time.perf_counter() - begin)
    mine = np.array([np.median(times)])
    return float(transport.allgather(name + ".time", mine).wait().max())


def machine(slowest: Codec, network: Network, ranks: int) -> Machine:
    """The cost model's speeds. What was measured contains what ranks share, cores included.

    The time of a tiny collective is given to messages as far as 50 us each go, the rest to its
    start: the two cannot be told apart by one number of ranks.
    """
    messages = 2 * (ranks - 1) + 2 * float(np.log2(ranks))
    latency = min(50e-6, network.latency / messages)
    return Machine(
        bandwidth=network.bandwidth,
        latency=latency,
        start=max(network.latency - messages * latency, 0.0),
        encode=slowest.encode,
        decode=slowest.decode,
        copy=slowest.copy,
        cast=slowest.cast,
        # Inside the bandwidth, which is an all-reduce's.
        add=0.0,
        wire_cpu=0.0,
    )


def exchange(transport: Any, megabytes: int, rounds: int = 5) -> dict[str, float]:
    """Median seconds of one exchange of ``megabytes`` of gradients by each way, all in turn.

    The methods of ``benchmarks/exchange.py``, shorter; the slowest rank's median.
    """
    import horovod.torch as hvd
    import torch

    from horovod_qoda import layout
    from horovod_qoda.exchange import Exchange
    from horovod_qoda.settings import Settings

    generator = torch.Generator().manual_seed(transport.rank)
    layers = [torch.randn(256, 1024, generator=generator) for _ in range(megabytes)]
    flat = torch.cat([x.reshape(-1) for x in layers])
    plans = [(f"layer{i}", tuple(x.shape), str(x.dtype)) for i, x in enumerate(layers)]
    ways: dict[str, Callable[[], Any]] = {
        "fp32": lambda: hvd.allreduce(flat, name="doctor.fp32"),
        "fp16": lambda: hvd.allreduce(flat, name="doctor.fp16", compression=hvd.Compression.fp16),
    }
    ours = []
    for i, topology in enumerate(("allgather", "scatter_reduce")):
        settings = Settings.resolve(topology=topology, rules={}, warmup_steps=0)
        ours.append(Exchange(layout.build(plans, settings), settings, transport, 0xF00 + i))
        ours[-1].agree()
        ways[topology] = _round(ours[-1], layers)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 2):  # the first two settle tables and lengths
        for name, run in ways.items():
            transport.allreduce("doctor.barrier", np.zeros(1, np.float32)).wait()
            begin = time.perf_counter()
            run()
            if turn >= 2:
                times[name].append(time.perf_counter() - begin)
    for one in ours:
        one.close()
    medians = np.array([np.median(times[name]) for name in ways])
    slowest = transport.allgather("doctor.times", medians).wait().reshape(-1, len(ways)).max(axis=0)
    return dict(zip(ways, slowest.tolist(), strict=True))


def _round(one: Any, layers: list[Any]) -> Callable[[], None]:
    def run() -> None:
        for j, gradient in enumerate(layers):
            one.put(j, gradient)
        for j in range(len(layers)):
            one.mean(j)
        one.finish()

    return run


def _median(run: Callable[[], Any]) -> float:
    """Median seconds of a call, after one that does not count."""
    run()
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < REPEATS or time.perf_counter() - begun < LEAST_SECONDS:
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))
