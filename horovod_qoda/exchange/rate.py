"""How steps follow what payloads take, as pure functions.

Frames tell every rank how long the payloads of all ranks were, so each works the same correction
out after every exchange, without a word to the others: it uses only sums, products and quotients of
IEEE float64, which are the same on every processor.

The correction is an integral one: log2 of the factor moves by the rate's error over
``HORIZON * slope``. So the errors of N exchanges add up to ``HORIZON * slope`` times what log2 of
the factor moved in them, and their mean is off by that over N: by 0.02 bit where gradients that
change ask for an octave within 1,000 exchanges. One exchange moves a factor by ``MAX_CHANGE /
HORIZON`` octaves at most.
"""

from __future__ import annotations

import math

import numpy as np

from horovod_qoda.coding import entropy_bits
from horovod_qoda.cost.exchange import BLOCK, BLOCK_ROW, HEADER, SEGMENT, STATES

HORIZON = 20
"""Exchanges over which the rate is averaged. Rates of single minibatches scatter by 1 to 3 %, which
this damps to a sixth; fewer of the first ones are averaged, since gradients change fastest there.
"""

SLOPES = (0.2, 1.2)
"""Limits of the bits gained when a step is halved, as a sample has it: a sample must not turn a
small error into a wild change."""

MAX_CHANGE = 1.0
"""Largest change of log2 of a step factor at once: one odd gradient must not throw it."""

FACTORS = (2.0**-10, 2.0**10)
"""Steps over RMS, from 12 bits to 0.01 of Gaussian coordinates: a model whose gradients are mostly
zero may never reach its rate, and must not run away for trying."""

_HALF_LN2 = 0.34657359027997264


BITS, COORDINATES, LIVE, HEADERS = range(4)
"""What is told of payloads, in columns: their bits without raw layers; the quantised coordinates
they stand for; those of them in layers that were not all zero; and bits of their headers."""


def header_bits(segments: int, live: int) -> int:
    """Bits of a payload's header, tables of segments and blocks, and coder states.

    Args:
        segments: those that are not raw by layout.
        live: their coordinates, without segments that are all zero or not finite.
    """
    blocks = -(-live // BLOCK)
    return 8 * (HEADER + SEGMENT * segments + (BLOCK_ROW + STATES) * blocks)


def raw_bits(coordinates: int) -> int:
    """Bits that coordinates of raw layers take in a payload, with their rows of the block table."""
    return 32 * coordinates + 8 * BLOCK_ROW * -(-coordinates // BLOCK)


def rates_to_steer_by(told: np.ndarray) -> list[float]:
    """Bits per live coordinate of every stage that has any, of [stages, 4] integers.

    Headers count up to a tenth of the payload: a tiny model's would leave nothing of the bits asked
    for.
    """
    rates = []
    for bits, _, live, headers in told.tolist():
        if live:
            rates.append((bits - max(0, headers - bits // 10)) / live)
    return rates


def lengths_tell(told: np.ndarray) -> bool:
    """Whether payloads, [stages, 4] integers, are long enough for their bits to follow the steps.

    Where headers are more than a quarter, as with a model of less than some 3,000 coordinates, what
    else does not depend on the steps (tables, whole bytes) outweighs what does.
    """
    return all(4 * headers <= bits for bits, _, live, headers in told.tolist() if live)


def mean_rate(told: np.ndarray) -> float:
    """Payload bits per quantised coordinate, mean over stages that have any; nan for none."""
    rates = [bits / count for bits, count, _, _ in told.tolist() if count]
    return sum(rates) / len(rates) if rates else math.nan


def correction(error: float, slope: float, age: int) -> float:
    """What all step factors are multiplied with after an exchange.

    Args:
        error: bits per coordinate above what was wanted.
        slope: bits gained when all steps are halved.
        age: exchanges since adaptation began; the first one's error is corrected in full.
    """
    octaves = min(max(error / slope, -MAX_CHANGE), MAX_CHANGE) / min(age + 1, HORIZON)
    # 2^octaves but for 3 % at one octave; the power itself is rounded differently by libraries.
    half = _HALF_LN2 * octaves
    return (1.0 + half) / (1.0 - half)


def apart(changes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Changes of log2 of several factors, less what they have in common.

    Args:
        changes: nan where a factor's rate is not known; it is left alone.
        weights: what the model's rate loses for one octave of each factor.
    """
    known = np.isfinite(changes)
    total = weights[known].sum()
    common = float(changes[known] @ weights[known] / total) if total else 0.0
    return np.where(known, changes - common, 0.0)


def mean_entropy(histogram: np.ndarray) -> float:
    """Mean bits per symbol of counts [n, 256], each row with a table of its own; nan for no counts.

    An escape (column 0) is followed by a byte, but for rare ones far out.
    """
    count = histogram.sum()
    if not count:
        return float("nan")
    return float((entropy_bits(histogram) + 8 * histogram[:, 0].sum()) / count)
