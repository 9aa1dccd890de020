"""What is compressed and what is not, said once after the first exchange."""

from __future__ import annotations

from collections import Counter

from horovod_qoda.allocation import low_rank_numbers
from horovod_qoda.exchange import ExchangeRecord
from horovod_qoda.logs import logger
from horovod_qoda.torch.carriers import Carrier, LayerwiseCarrier


def summarize(carrier: Carrier, record: ExchangeRecord, ranks: int) -> None:
    """Logs what the first exchange did; a warning where nothing was compressed."""
    if not isinstance(carrier, LayerwiseCarrier):
        logger().warning(
            "the compression passed is not layerwise: gradients travel by stock Horovod, "
            f"{record.wire_bytes:,} bytes a rank and step"
        )
        return
    for sentence in carrier.exchange.routes.placement.describe():
        logger().info(sentence)
    layout = carrier.layout
    quantized = [x for x in layout.layers if not layout.types[x.type].raw]
    why = Counter(x.why_raw for x in layout.layers if x.why_raw)
    raw = "; ".join(f"{count} because {reason}" for reason, count in why.most_common())
    thin = [x for x in layout.layers if layout.types[x.type].low_rank]
    if thin:
        numbers = sum(low_rank_numbers(x.shape, layout.types[x.type].low_rank) for x in thin)
        coordinates = sum(x.numel for x in thin)
        logger().info(
            f"{len(thin)} of {len(layout.layers)} layers ({coordinates:,} coordinates) are sent by "
            f"PowerSGD as {numbers:,} numbers"
        )
    if not quantized and not thin:
        logger().warning(
            f"NOTHING IS COMPRESSED: all {len(layout.layers)} layers travel raw ({raw})"
        )
        return
    if not quantized:
        logger().info(
            f"raw: {raw or 'none'}; first exchange: {record.raw_bytes:,} bytes of gradients became "
            f"{record.wire_bytes:,} on the wire"
        )
        return
    settings = carrier.exchange.settings
    numel = sum(x.numel for x in quantized)
    bits = sum(x.numel * layout.types[x.type].rate for x in quantized) / numel
    text = (
        f"{len(quantized)} of {len(layout.layers)} layers ({numel:,} coordinates) are quantised to "
        f"about {bits:.3g} bits ({settings.quantizer}), {carrier.exchange.topology} over {ranks} "
        f"rank{'s' if ranks != 1 else ''}"
    )
    if raw:
        text += f"; raw: {raw}"
    expected = (
        sum(x.numel for x in layout.layers)
        * 32
        / (numel * bits + 32 * sum(x.numel for x in layout.layers if x.why_raw))
    )
    stages = 2 if carrier.exchange.topology == "scatter_reduce" else 1
    logger().info(
        f"{text}; first exchange: {record.raw_bytes:,} bytes of gradients became "
        f"{record.wire_bytes:,} on the wire ({stages} stage{'s' if stages > 1 else ''}); expected "
        f"ratio {expected:.1f} a stage"
    )
