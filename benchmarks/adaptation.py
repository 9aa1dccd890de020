"""What adapting costs the WGAN of examples/wgan.py, and the rate it reaches.

    python launch/run.py -np 4 -- python benchmarks/adaptation.py --steps 60 --quantizer adaptive

takes the example's flags and runs it, timing every update on every rank (levels, tables, steps,
L-GreCo: everything between the last mean gradient and the next step, waiting for rank 0 included).
Prints the median update and step, and the share of training that updates take at the default
schedule, in the first 1,000 exchanges and later. The last line gives coded bits per coordinate in
the exchanges after the last update, and what the same symbols take under each coding protocol of
docs/theory.md section 4: a table for each type (main), one for all types (what "alternating" does
in the exchange), and one for pairs of type and symbol (the paper's alternating protocol).
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import wgan  # noqa: E402

from horovod_qoda import theory  # noqa: E402
from horovod_qoda.coding import entropy, entropy_bits  # noqa: E402
from horovod_qoda.exchange import Exchange  # noqa: E402
from horovod_qoda.exchange.adaptation import is_update  # noqa: E402

FIRST = sum(is_update(n) for n in range(1000))


class Clock:
    """Times of updates and of whole steps, and the last counts of symbols."""

    def __init__(self) -> None:
        self.updates: list[float] = []
        self.steps: list[float] = []
        self.records: list[Any] = []
        self.symbols = np.zeros((0, 256))
        self._last = 0.0
        update, finish = Exchange._update, Exchange.finish

        def timed_update(exchange: Any, step: Any) -> None:
            mine = step.histogram.copy()
            begin = time.perf_counter()
            update(exchange, step)
            self.updates.append(time.perf_counter() - begin)
            total = exchange.transport.allreduce("benchmark.symbols", mine[0].ravel()).wait()
            self.symbols = total.reshape(mine[0].shape)

        def timed_finish(exchange: Any) -> Any:
            out = finish(exchange)
            now = time.perf_counter()
            self.steps.append(now - self._last)
            self._last = now
            self.records.append(out[0])
            return out

        Exchange._update = timed_update
        Exchange.finish = timed_finish


def protocols(symbols: np.ndarray) -> dict[str, float]:
    """Bits per symbol of the counts [types, 256] under each coding protocol."""
    rows = symbols[symbols.sum(axis=1) > 0]
    totals = rows.sum(axis=1)
    return {
        "main": entropy_bits(rows) / totals.sum(),
        "one table": entropy(rows.sum(axis=0)),
        "pairs": theory.pooled_entropy(list(totals), [r / r.sum() for r in rows]),
    }


def main() -> None:
    clock = Clock()
    wgan.main()
    if wgan.hvd.rank():
        return
    # The first steps touch fresh memory, and updates distort the steps they end.
    quiet = [s for n, s in enumerate(clock.steps) if n > 5 and not is_update(n)]
    update, step = statistics.median(clock.updates[1:]), statistics.median(quiet)
    print(f"update {1e3 * update:.1f} ms (median of {len(clock.updates) - 1}), step {step:.4f} s")
    for name, count in ((f"first 1,000 exchanges ({FIRST} updates)", FIRST), ("later", 1)):
        print(f"share of training, {name}: {100 * count * update / (1000 * step):.3f} %")
    last = max(n for n in range(len(clock.steps)) if is_update(n))
    coded = [r.coded_bits for r in clock.records[last + 1 :]]
    rates = ", ".join(f"{name} {bits:.3f}" for name, bits in protocols(clock.symbols).items())
    print(f"coded bits {np.mean(coded):.3f} per coordinate; entropies: {rates}")


if __name__ == "__main__":
    main()
