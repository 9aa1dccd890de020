"""What the doctor says of the speeds it measured, and whether compression pays with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from horovod_qoda import cost
from horovod_qoda.cli.findings import BROKEN, NOTE, Finding

if TYPE_CHECKING:
    from horovod_qoda.cli.speed import Codec, Network

SIZES = (1, 16, 64, 256)
"""Megabytes of gradients for which the verdict is given."""


def codec_speed(codec: Codec) -> Iterator[Finding]:
    def rate(each: float) -> str:
        return f"{4e-9 / each:.2f} GB/s"

    yield Finding(
        "speed",
        f"codec at {codec.bits:.2f} bits: encodes {rate(codec.encode)} of float32, decodes and "
        f"sums {rate(codec.decode)}; copying is {rate(codec.memcpy)}",
    )
    # The dithered error is step^2 / 12: at 3 bits 2 to 4 % of a Gaussian's square.
    if not 0.0 < codec.relative_error < 0.1:
        yield Finding("codec", f"a round trip has relative error {codec.relative_error:.3g}: the "
                      "codec is wrong on this CPU", BROKEN,
                      "HOROVOD_QODA_SIMD=portable, and please report it")  # fmt: skip


def network_speed(network: Network, ranks: int) -> Iterator[Finding]:
    yield Finding(
        "network",
        f"{ranks} ranks through Horovod: {8e-9 * network.bandwidth:.2f} Gbit/s each way, "
        f"{1e3 * network.latency:.2f} ms for the smallest all-reduce",
    )


def measured_exchange(megabytes: int, seconds: dict[str, float], picked: str) -> Iterator[Finding]:
    """What one exchange took, and whether the picked topology is the faster one."""
    best = min(("allgather", "scatter_reduce"), key=seconds.__getitem__)
    times = ", ".join(f"{name} {1e3 * value:.1f}" for name, value in seconds.items())
    yield Finding("exchange", f"{megabytes} MB of gradients, measured, in ms: {times}")
    if picked in seconds and seconds[picked] > 1.15 * seconds[best]:
        yield Finding(
            "exchange",
            f"auto picks {picked}, which took {seconds[picked] / seconds[best]:.2f} times as long "
            f"as {best}",
            NOTE,
            f"HOROVOD_QODA_TOPOLOGY={best}",
        )


def automatic(ranks: int, hosts: Any = None) -> str:
    """The topology that `auto` picks for so many ranks, under the settings in force.

    Args:
        hosts: which ranks share hosts, where several do and Horovod may group them.
    """
    from horovod_qoda.exchange import choose_topology
    from horovod_qoda.settings import Settings

    return choose_topology(Settings.resolve(), ranks, hosts)


def verdict(
    machine: cost.Machine,
    ranks: int,
    picked: str,
    measured: dict[str, float],
    ranks_per_host: int = 1,
) -> Iterator[Finding]:
    """Predicted gain by size with the picked topology; whether it pays.

    Args:
        measured: seconds of a whole exchange by way, which decide where they are there.
        ranks_per_host: of which two levels make use.
    """
    from horovod_qoda.settings import Settings

    bits = Settings.resolve().bits

    def exchange(coordinates: int) -> cost.Exchange:
        return cost.Exchange(coordinates, ranks, picked, bits, ranks_per_host=ranks_per_host)

    yield Finding("topology", f"auto picks {picked} for {ranks} ranks")
    gains, gain = [], 0.0
    for size in SIZES:
        ours = exchange(size * 2**18)
        here = cost.seconds(ours, machine)
        by = {k: cost.seconds(replace(ours, topology=k), machine) / here for k in cost.RAW}
        gain = max(gain, by["fp32"])
        gains.append(f"{size} MB {by['fp32']:.1f}x fp32, {by['fp16']:.1f}x fp16")
    yield Finding("model", f"predicted speed of an exchange at {bits:g} bits: {'; '.join(gains)}")
    limit = cost.crossover(exchange(2**22), machine)
    yield Finding("model", f"16 MB break even with fp32 at {8e-9 * limit:.2f} Gbit/s")
    how = "predicted"
    if picked in measured:
        gain, how = measured["fp32"] / measured[picked], "measured"
    if gain > 1.1:
        yield Finding("verdict", f"compression pays here: {gain:.1f}x fp32, {how}")
    else:
        yield Finding(
            "verdict",
            f"compression does not pay between these ranks: {gain:.1f}x fp32, {how}",
            NOTE,
            "Compression.none or fp16 here; it pays on slower links or with more to send",
        )
