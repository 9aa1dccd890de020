"""Does L-GreCo with measured sensitivities serve the loss better than without?

    python benchmarks/sensitivity.py --bits 1.5 --seeds 0 1 2

The small language model of benchmarks/final_loss.py, one process, every gradient through the
exchange. Its first 50 steps are uncompressed; then sensitivities are measured on one batch, and 300
steps follow with bits of each layer chosen as the row says. Prints mean bits per quantised
coordinate, the held-out loss and its distance from float32 with the same seed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.final_loss import (  # noqa: E402
    BATCH,
    RATES,
    batch_loss,
    held_out_loss,
    model,
    tokens,
)
from horovod_qoda import sensitivity  # noqa: E402
from horovod_qoda.exchange import Exchange  # noqa: E402
from horovod_qoda.layout import build  # noqa: E402
from horovod_qoda.settings import Settings  # noqa: E402
from horovod_qoda.transport import local_transports  # noqa: E402

PLAIN, STEPS, PROBED = 50, 300, 512
ROWS: dict[str, dict[str, Any] | None] = {
    "float32": None,
    "equal bits": {},
    "L-GreCo, squared": {"allocation": "lgreco"},
    "L-GreCo, squared, sensitivity": {"allocation": "lgreco", "rules": True},
    "L-GreCo, relative": {"allocation": "lgreco", "allocation_error": "relative"},
    "L-GreCo, relative, sensitivity": {
        "allocation": "lgreco", "allocation_error": "relative", "rules": True
    },
}  # fmt: skip


def train(row: str, optimizer: str, bits: float, seed: int, text: Tensor, alpha: float) -> Any:
    """Held-out loss, mean bits, sensitivities and the bits chosen for each layer."""
    torch.manual_seed(seed)
    net = model()
    make: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    updates = make[optimizer](net.parameters(), lr=RATES[optimizer])
    chooser = torch.Generator().manual_seed(seed)
    exchange, rates, felt = None, [], {}
    for step in range(PLAIN + STEPS):
        if step == PLAIN and ROWS[row] is not None:
            felt = sensitivity.measure(
                net,
                lambda: batch_loss(net, text, PROBED, torch.Generator().manual_seed(1)),
                seed=seed,
            )
            wanted = {**(ROWS[row] or {}), "bits": bits, "topology": "allgather", "seed": seed}
            if wanted.get("rules"):
                wanted["rules"] = sensitivity.rules(felt)
            if "allocation" in wanted:
                wanted["allocation_alpha"] = alpha
            settings = Settings(**wanted)
            named = [(n, tuple(p.shape), "torch.float32") for n, p in net.named_parameters()]
            exchange = Exchange(build(named, settings), settings, local_transports(1)[0], 0)
        updates.zero_grad()
        batch_loss(net, text, BATCH, chooser).backward()
        if exchange is not None:
            for layer, p in enumerate(net.parameters()):
                exchange.put(layer, p.grad)
            for layer, p in enumerate(net.parameters()):
                p.grad.copy_(torch.from_numpy(exchange.mean(layer)).view(p.shape))
            rates.append(exchange.finish()[0].coded_bits)
        updates.step()
    if exchange is not None:
        exchange.close()
    chosen = [] if exchange is None else [b for b in exchange.adaptation.bits if b == b]
    mean_bits = statistics.fmean(rates[20:]) if rates else 32.0
    return held_out_loss(net, text), mean_bits, felt, chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizers", nargs="+", default=["sgd", "adam"])
    parser.add_argument("--bits", type=float, default=1.5)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--alpha", type=float, default=1.0, help="allocation_alpha of L-GreCo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = tokens()
    for optimizer in args.optimizers:
        print(f"\n{optimizer}\n| bits of each layer | bits | loss | over float32 | chosen |")
        print("|---|---|---|---|---|", flush=True)
        plain: list[float] = []
        for row in args.rows:
            got = [train(row, optimizer, args.bits, s, text, args.alpha) for s in args.seeds]
            loss = [x[0] for x in got]
            plain = plain or loss
            over = [a - b for a, b in zip(loss, plain, strict=True)]
            spread = statistics.stdev(over) if len(over) > 1 else 0.0
            print(
                f"| {row} | {statistics.fmean(x[1] for x in got):.2f} | "
                f"{statistics.fmean(loss):.3f} | {statistics.fmean(over):+.4f} ± {spread:.4f} | "
                f"{', '.join(f'{b:g}' for b in got[0][3])} |",
                flush=True,
            )
        weights = sensitivity.rules(got[0][2])  # of the last row
        print(
            "weights, seed",
            args.seeds[0],
            {k: round(v["sensitivity"], 4) for k, v in weights.items()},
        )


if __name__ == "__main__":
    main()
