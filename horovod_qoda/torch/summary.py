"""What is compressed and what is not, said once after the first exchange."""

from __future__ import annotations

from collections import Counter

from horovod_qoda.allocation import low_rank_numbers
from horovod_qoda.exchange import ExchangeRecord
from horovod_qoda.layout import Layout
from horovod_qoda.logs import logger
from horovod_qoda.settings import Settings
from horovod_qoda.torch.carriers import Carrier, LayerwiseCarrier

NOTHING = "NOTHING IS COMPRESSED"


def summarize(carrier: Carrier, record: ExchangeRecord, ranks: int) -> None:
    """Logs what the first exchange did; a warning where nothing was compressed."""
    if not isinstance(carrier, LayerwiseCarrier):
        loud = f"{NOTHING}: " if record.wire_bytes >= record.raw_bytes else ""
        logger().warning(
            f"{loud}the compression passed is not layerwise, so gradients travel by stock Horovod, "
            f"{record.wire_bytes:,} bytes a rank and step; pass hvd.Compression.layerwise"
        )
        return
    exchange = carrier.exchange
    for sentence in (*exchange.routes.placement.describe(), exchange.routes.travels):
        if sentence:
            logger().info(sentence)
    layout, topology, stages = carrier.layout, exchange.topology, exchange.routes.stages
    text = describe(layout, exchange.settings, topology, stages, record, ranks)
    compressed = not all(x.why_raw for x in layout.layers)
    (logger().info if compressed else logger().warning)(text)


def describe(
    layout: Layout,
    settings: Settings,
    topology: str,
    stages: int,
    record: ExchangeRecord,
    ranks: int,
) -> str:
    """What travels in which way, why some layers travel raw, and the ratio to expect.

    Args:
        stages: in which quantised layers travel, 1 or 2.
    """
    kinds = [layout.types[x.type] for x in layout.layers]
    both = list(zip(layout.layers, kinds, strict=True))
    quantized = [(x.numel, kind.rate) for x, kind in both if not kind.raw]
    thin = [(x.numel, low_rank_numbers(x.shape, k.low_rank)) for x, k in both if k.low_rank]
    why = Counter(x.why_raw for x in layout.layers if x.why_raw)
    raw = "; ".join(f"{count} because {reason}" for reason, count in why.most_common())
    if not quantized and not thin:
        return f"{NOTHING}: all {len(layout.layers)} layers travel raw ({raw})"

    numel = sum(n for n, _ in quantized)
    coded = sum(n * bits for n, bits in quantized)
    numbers = sum(n for _, n in thin)
    ways = []
    if quantized:
        names = dict.fromkeys(kind.quantizer for kind in kinds if not kind.raw)
        ways.append(
            f"{len(quantized)} of {len(kinds)} layers ({numel:,} coordinates) are quantised to "
            f"about {coded / numel:.3g} bits ({', '.join(names)})"
        )
    if thin:
        ways.append(
            f"{len(thin)} of {len(kinds)} layers ({sum(n for n, _ in thin):,} coordinates) are "
            f"sent by PowerSGD as {numbers:,} numbers"
        )
    total = sum(x.numel for x in layout.layers)
    left = sum(x.numel for x in layout.layers if x.why_raw)
    expected = 32 * total / (coded + 32 * (numbers + left))
    stages = stages if quantized else 1
    first = (
        f"the first {settings.warmup_steps} exchanges are float32 (warmup_steps)"
        if record.topology == "raw" and settings.warmup_steps
        else f"first exchange: {record.raw_bytes:,} bytes of gradients became "
        f"{record.wire_bytes:,} on the wire ({stages} stage{'s' if stages > 1 else ''})"
    )
    return (
        f"{'; '.join(ways)}; {topology} over {ranks} rank{'s' if ranks != 1 else ''}; raw: "
        f"{raw or 'none'}; {first}; expected ratio {expected:.1f} a stage"
    )
