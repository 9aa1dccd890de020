"""Would sharing a code table and levels between layers that look alike save bytes?

    python launch/run.py -np 2 -- python benchmarks/merging.py wgan --steps 60
    python launch/run.py -np 2 -- python benchmarks/merging.py transformer_xl --steps 60

runs the example and at its last exchange codes rank 0's gradient with layers grouped by ``types=``
("kind", "layer", "global") and merged: from a type for each layer on, the two whose symbols in the
exchange before cost least to code with one table are joined, as long as that is less than the table
that it saves. Prints, for each quantiser, the number of types, bytes of the payload over those of
"kind", and the squared error over the gradient's squares. Steps are those of Gaussian coordinates.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from horovod_qoda.coding import (  # noqa: E402
    SEGMENT,
    Header,
    copy_stats,
    encode,
    entropy_bits,
    max_payload_bytes,
)
from horovod_qoda.exchange import Exchange  # noqa: E402
from horovod_qoda.layout import ALIGN  # noqa: E402
from horovod_qoda.quantization import step_factor, step_size  # noqa: E402
from horovod_qoda.quantization.adaptive import count_for_rate, fit_levels  # noqa: E402
from horovod_qoda.quantization.histogram import normalised_histograms  # noqa: E402

BUCKET = 1024
TABLE = 8 * 60  # bits of an inline table, at the small end

Layers = list[np.ndarray]


def code(layers: Layers, types: list[int], bits: float, quantizer: str) -> tuple[int, Any, float]:
    """Bytes of the payload, counts of symbols by type, and the relative squared error."""
    order = np.argsort(types, kind="stable")
    rows = np.zeros(len(layers), SEGMENT)
    rows["numel"] = [len(layers[i]) for i in order]
    padded = -(-rows["numel"].astype(np.int64) // ALIGN) * ALIGN
    rows["offset"] = np.cumsum(padded) - padded
    rows["layer"], rows["type"] = np.arange(len(layers)), np.array(types)[order]
    values = np.zeros(padded.sum(), np.float32)
    levels: list[np.ndarray] = []
    for row, i in zip(rows, order, strict=True):
        values[row["offset"] :][: row["numel"]] = layers[i]
        square = copy_stats(np.ascontiguousarray(layers[i]))[0]
        row["step"] = step_size(step_factor(bits), square, int(row["numel"]))
    rows["quantizer"] = 1
    if quantizer == "adaptive":
        rows["quantizer"], rows["bucket"], rows["levels"] = 2, BUCKET, rows["type"]
        for type in range(max(types) + 1):
            mine = [v for v, t in zip(layers, types, strict=True) if t == type]
            pairs = [normalised_histograms(v, BUCKET, "linf") for v in mine]
            counts, weighted = (sum(x) for x in zip(*pairs, strict=True))
            levels.append(fit_levels(weighted, count_for_rate(counts, weighted, bits, BUCKET)))
    symbols = np.zeros((max(types) + 1, 256), np.int64)
    decoded, out = np.zeros_like(values), np.empty(max_payload_bytes(rows), np.uint8)
    head = Header(1, 0, 0, 0, 0, 42)
    size = encode(values, rows, head, out, levels=levels, histogram=symbols, decoded=decoded)
    wrong = np.subtract(decoded, values, dtype=np.float64)
    return size, symbols, float(np.sum(wrong**2) / np.sum(values.astype(np.float64) ** 2))


def merged(symbols: np.ndarray) -> list[int]:
    """A type for each row of counts, after all joins that save more than they cost."""
    sets = [[i] for i in range(len(symbols))]
    counts = list(symbols.astype(np.float64))
    while len(sets) > 1:
        own = [entropy_bits(c) for c in counts]
        cost, a, b = min(
            (entropy_bits(counts[a] + counts[b]) - own[a] - own[b], a, b)
            for a in range(len(sets))
            for b in range(a)
        )
        if cost >= TABLE:
            break
        sets[b] += sets.pop(a)
        counts[b] = counts[b] + counts.pop(a)
    return [next(t for t, members in enumerate(sets) if i in members) for i in range(len(symbols))]


def compare(kinds: list[str], before: Layers, now: Layers) -> None:
    names = list(dict.fromkeys(kinds))
    each = list(range(len(kinds)))
    print(f"{len(each)} layers of {len(names)} kinds, {sum(map(len, now)):,} coordinates")
    print(
        "| quantiser | bits | types | number | bytes over kind | error |\n|---|---|---|---|---|---|"
    )
    for quantizer in ("auto", "adaptive"):
        for bits in (2.0, 3.0):
            groups = {
                "kind": [names.index(k) for k in kinds],
                "layer": each,
                "global": [0] * len(kinds),
                "merged": merged(code(before, each, bits, quantizer)[1]),
            }
            base = code(now, groups["kind"], bits, quantizer)[0]
            for name, types in groups.items():
                size, _, error = code(now, types, bits, quantizer)
                print(
                    f"| {quantizer} | {bits:g} | {name} | {max(types) + 1} | {size / base:.4f} "
                    f"| {error:.4f} |"
                )


def main() -> None:
    example = sys.argv.pop(1)
    gradients: list[tuple[list[str], Layers]] = []
    finish = Exchange.finish

    def keeping(exchange: Any) -> Any:
        out = finish(exchange)
        coded = [x for x in exchange.layout.layers if not exchange.layout.types[x.type].raw]
        layers = [exchange._buffer_of[x.index].span(x.index).copy() for x in coded]
        gradients[:] = [*gradients[-1:], ([x.kind for x in coded], layers)]
        return out

    Exchange.finish = keeping
    module = importlib.import_module(example)
    module.main()
    if module.hvd.rank() == 0:
        (kinds, before), (_, now) = gradients
        live = [i for i in range(len(kinds)) if before[i].any() and now[i].any()]
        compare([kinds[i] for i in live], [before[i] for i in live], [now[i] for i in live])


if __name__ == "__main__":
    main()
