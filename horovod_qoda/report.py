"""Theory against measurement, layer by layer, on the exchange that has just ended or over a run.

for line in report(optimizer):
    print(line)

Kept now and then during training, reports are averaged by :func:`over_run`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from horovod_qoda import layer_figures, theory
from horovod_qoda.coding.payload import DITHERED, LEVELS, MAXMIN

if TYPE_CHECKING:
    from horovod_qoda.exchange import Exchange
    from horovod_qoda.exchange.buffer import ExchangeBuffer


@dataclass(frozen=True)
class LayerReport:
    """One layer of this rank's last gradient, first stage; from a sample of 16 Ki coordinates.

    Bits are per coordinate, errors squared and relative to the squares of the gradient.
    """

    name: str
    kind: str
    quantizer: str
    numel: int
    bits: float
    """Measured: coded with the table in force, norms included."""
    entropy: float
    """Lower bound on them: entropy of the symbols, signs included, and the norms."""
    bits_bound: float
    """Upper bound that holds for any gradient: docs/theory.md section 8 for one stream, a fixed
    length code for levels."""
    error: float
    """Measured, of one draw."""
    variance: float
    """Exact expectation of it on this gradient, sections 2 and 8."""
    error_bound: float
    """Upper bound that holds for any gradient: section 5 for levels, section 8 for one stream."""

    @property
    def holds(self) -> bool:
        """Whether the exact figures keep their bounds. Measured ones may stray by chance."""
        slack = 1 + 1e-6
        return self.entropy <= self.bits_bound * slack and self.variance <= self.error_bound * slack

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.kind}, {self.quantizer}, {self.numel:,}): "
            f"{self.entropy:.2f} <= {self.bits:.2f} bits, bound {self.bits_bound:.2f}; "
            f"error {self.error:.4f}, expected {self.variance:.4f}, bound {self.error_bound:.4f}"
        )


def report(optimizer: Any) -> list[LayerReport]:
    """Compares the bounds of docs/theory.md with what was measured, for every quantised layer.

    Call it after ``step()`` and before the next gradients come. Layers that travel raw or by
    PowerSGD, that were zero or not finite, have no bounds and are left out.

    Args:
        optimizer: a ``DistributedOptimizer`` of this package with layer-wise compression.

    Raises:
        ValueError: its gradients travel by stock Horovod, or not by this exchange yet.
    """
    exchange = getattr(optimizer._gradients.carrier, "exchange", None)
    if exchange is None:
        raise ValueError("report: this optimizer's gradients travel by stock Horovod")
    if not exchange.number:
        raise ValueError("report: there was no exchange yet; call it after step()")
    return report_exchange(exchange)


def over_run(reports: Sequence[list[LayerReport]], lengths: Sequence[int]) -> list[LayerReport]:
    """Averages of reports, each weighted by the exchanges that it stands for.

    Relative variances and code lengths enter a run's rate with these averages (docs/theory.md
    section 5); bounds that hold for every report hold for its average.

    Args:
        reports: what :func:`report` returned at several times of a run.
        lengths: exchanges from each of them to the next, or to the end.

    Returns:
        One line for each layer, over the reports that have it; layers in order of appearance.

    Raises:
        ValueError: a length is missing, negative, or all are zero.
    """
    if len(reports) != len(lengths):
        raise ValueError(f"{len(reports)} reports but {len(lengths)} lengths")
    found: dict[str, list[tuple[LayerReport, int]]] = {}
    for lines, length in zip(reports, lengths, strict=True):
        for line in lines:
            found.setdefault(line.name, []).append((line, length))
    return [_average([x for x, _ in of], [n for _, n in of]) for of in found.values()]


def _average(lines: list[LayerReport], lengths: list[int]) -> LayerReport:
    means: dict[str, Any] = {
        name: theory.segment_average([getattr(line, name) for line in lines], lengths)
        for name in ("bits", "entropy", "bits_bound", "error", "variance", "error_bound")
    }
    return replace(lines[-1], **means)


def report_exchange(exchange: Exchange) -> list[LayerReport]:
    """As :func:`report`, of an exchange between its end and the start of the next one."""
    figures = layer_figures.measure(exchange, 0)
    found: dict[int, LayerReport] = {}
    for buffer in exchange.routes.buffers:
        steps = exchange.adaptation.steps(buffer)
        for chunk in buffer.chunks:
            rows = buffer.segments(chunk, steps, exchange.adaptation.reconstruction)
            for row, index in zip(rows, chunk.layers, strict=True):
                layer = int(index)
                if layer in found or not figures["error"][layer] >= 0 or not row["quantizer"]:
                    continue
                found[layer] = _layer(exchange, buffer, layer, row, figures)
    return [found[i] for i in sorted(found)]


def _layer(
    exchange: Exchange,
    buffer: ExchangeBuffer,
    index: int,
    row: np.void,
    figures: dict[str, list[float]],
) -> LayerReport:
    layer = exchange.layout.layers[index]
    values = layer_figures.sample(buffer.span(index), buffer.codec.fetch).astype(np.float64)
    squares = float(values @ values)
    if row["quantizer"] in (LEVELS, MAXMIN):
        size = int(row["bucket"]) or values.size
        buckets = [values[at : at + size] for at in range(0, values.size, size)]
        levels = exchange.adaptation.levels[int(row["levels"])].astype(np.float64)
        side = (64.0 if row["quantizer"] == MAXMIN else 32.0) / size
        bound = _maxmin if row["quantizer"] == MAXMIN else _levels
        variance, error_bound = bound(buckets, levels, 2.0 if row["norm"] else math.inf)
        symbols = 2 * len(levels) - (row["quantizer"] == LEVELS)
        bits_bound = math.log2(symbols) + side
    else:
        step, side = float(row["step"]), 0.0
        c = step / math.sqrt(squares / values.size)
        dithered = int(row["reconstruction"]) == DITHERED
        variance = (
            theory.dithered_variance(values.size, step)
            if dithered
            else theory.rounded_variance(values, step)
        )
        error_bound = squares * (
            theory.dithered_relative_variance(c) if dithered else theory.rounded_relative_bound(c)
        )
        bits_bound = theory.one_stream_entropy_bound(c)
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        quantizer=exchange.layout.types[layer.type].quantizer,
        numel=layer.numel,
        bits=figures["bits"][index],
        entropy=figures["entropy"][index] + side,
        bits_bound=bits_bound,
        error=figures["error"][index],
        variance=variance / squares,
        error_bound=error_bound / squares,
    )


def _levels(buckets: Sequence[np.ndarray], levels: np.ndarray, q: float) -> tuple[float, float]:
    """Exact variance and its bound, section 5, bucket by bucket."""
    exact = sum(theory.level_variance(b, levels, q) for b in buckets)
    return exact, theory.bucketed_bound([(b, levels) for b in buckets], q)


def _maxmin(buckets: Sequence[np.ndarray], levels: np.ndarray, q: float) -> tuple[float, float]:
    """Exact variance; a coordinate's is at most a quarter of the squared unit."""
    exact = bound = 0.0
    for b in buckets:
        unit = float(b.max() - b.min()) / (2 * len(levels) - 1)
        if unit > 0:
            exact += theory.rounded_variance(b - b.min(), unit)
        bound += b.size * unit**2 / 4
    return exact, bound
