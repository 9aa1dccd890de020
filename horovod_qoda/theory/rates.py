"""Noise of the quantized oracle, convergence rates, averages over training (docs/theory.md §5, §6).

K nodes, T iterations. σ² and ‖A‖² are in squared gradient units; σ_R and ε_Q are relative variances
without unit; D is the distance from start to solution. Rates have the merit function's unit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def relative_oracle_constant(sigma_r: float, epsilon: float) -> float:
    """σ_R ε_Q + ε_Q + σ_R: E‖Q(V) − A‖² ≤ this · ‖A‖² if E‖V − A‖² ≤ σ_R ‖A‖². [P] §5

    The constant in the paper's rate under relative noise, arXiv 2505.14371.
    """
    return sigma_r * epsilon + epsilon + sigma_r


def absolute_oracle_variance(sigma_sq: float, epsilon: float, field_sq: float) -> float:
    """(1 + ε_Q) σ² + ε_Q ‖A‖²: bounds E‖Q(V) − A‖² if E‖V − A‖² ≤ σ². [P] §5"""
    return (1.0 + epsilon) * sigma_sq + epsilon * field_sq


def relative_rate(
    sigma_r: float, epsilon: float, distance: float, iterations: int, nodes: int
) -> float:
    """(σ_R ε_Q + ε_Q + σ_R) D²/(TK), the gap's order under relative noise.

    Without noise and quantization the constant is 0 and the rate is O(D²/T) with the operator's
    Lipschitz constant, which this does not contain. [S] for the shape, [R] for the constant. §6
    """
    return relative_oracle_constant(sigma_r, epsilon) * distance**2 / (iterations * nodes)


def absolute_rate(
    sigma_sq: float, epsilon: float, field_sq: float, distance: float, iterations: int, nodes: int
) -> float:
    """D √(((1 + ε_Q)σ² + ε_Q‖A‖²)/(TK)), the gap's order under absolute noise.

    [S] for O(1/√(TK)), [R] for the factor. §6
    """
    variance = absolute_oracle_variance(sigma_sq, epsilon, field_sq)
    return distance * math.sqrt(variance / (iterations * nodes))


def segment_average(values: Sequence[float], lengths: Sequence[int]) -> float:
    """Σ_j T_j x_j / Σ_j T_j over segments of training between updates of the levels.

    The mean that bounds on ε_Q under relative noise, and code lengths, enter a run's rate with.
    [R] §5
    """
    return _weighted(values, lengths)


def segment_root_average(values: Sequence[float], lengths: Sequence[int]) -> float:
    """Σ_j T_j √x_j / Σ_j T_j: the same for ε_Q under absolute noise, whose rate has its root.

    [R] §5
    """
    return _weighted([math.sqrt(value) for value in values], lengths)


def _weighted(values: Sequence[float], lengths: Sequence[int]) -> float:
    if len(values) != len(lengths) or sum(lengths) <= 0 or min(lengths) < 0:
        raise ValueError(f"one positive length for each value, got {len(values)}, {lengths}")
    return sum(v * n for v, n in zip(values, lengths, strict=True)) / sum(lengths)
