"""Monotone problems whose gap has a closed form, for variational_inequality.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Problem:
    """A monotone field with its gap in closed form.

    Attributes:
        operator: A(z), (d,) -> (d,).
        gap: merit of a point, 0 at a solution.
        project: onto the feasible set.
        start: X_1, float64.
    """

    name: str
    operator: Callable[[Tensor], Tensor]
    gap: Callable[[Tensor], float]
    project: Callable[[Tensor], Tensor]
    start: Tensor


def bilinear(half: int, rng: np.random.Generator) -> Problem:
    """Singular values 0.3 to 1, solution at distance 1; gap over the unit ball is ‖A(z)‖."""
    left, _ = np.linalg.qr(rng.standard_normal((half, half)))
    right, _ = np.linalg.qr(rng.standard_normal((half, half)))
    coupling = torch.from_numpy(left @ np.diag(np.linspace(0.3, 1.0, half)) @ right.T)
    solution = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal(2 * half)), dim=0)

    def operator(z: Tensor) -> Tensor:
        x, y = (z - solution).split(half)
        return torch.cat([coupling @ y, -coupling.T @ x])

    return Problem(
        "bilinear",
        operator,
        lambda z: float(torch.linalg.vector_norm(operator(z))),
        lambda z: z,
        torch.zeros(2 * half, dtype=torch.float64),
    )


def quadratic(half: int, rng: np.random.Generator) -> Problem:
    """A(z) = H(z − z*), eigenvalues of H from 10⁻³ to 1; gap over a ball around z* is ¼wᵀHw.

    With w = z − z*, u the position in the ball: ⟨Hu, w − u⟩ is largest at u = w/2.
    """
    d = 2 * half
    basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
    hessian = torch.from_numpy(basis @ np.diag(np.geomspace(1e-3, 1.0, d)) @ basis.T)
    solution = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal(d)), dim=0)
    return Problem(
        "quadratic",
        lambda z: hessian @ (z - solution),
        lambda z: float((z - solution) @ hessian @ (z - solution)) / 4,
        lambda z: z,
        torch.zeros(d, dtype=torch.float64),
    )


def matrix_game(half: int, rng: np.random.Generator) -> Problem:
    """Payoffs uniform on [−1, 1]; the gap is max_j (Mᵀx)_j − min_i (My)_i."""
    payoff = torch.from_numpy(rng.uniform(-1.0, 1.0, (half, half)))

    def operator(z: Tensor) -> Tensor:
        x, y = z.split(half)
        return torch.cat([payoff @ y, -payoff.T @ x])

    def gap(z: Tensor) -> float:
        x, y = z.split(half)
        return float((payoff.T @ x).max() - (payoff @ y).min())

    return Problem(
        "matrix game",
        operator,
        gap,
        lambda z: torch.cat([onto_simplex(part) for part in z.split(half)]),
        torch.full((2 * half,), 1.0 / half, dtype=torch.float64),
    )


def onto_simplex(v: Tensor) -> Tensor:
    """Euclidean projection onto {x ≥ 0, Σx = 1}: max(v − τ, 0) with the τ that makes the sum 1."""
    descending, _ = v.sort(descending=True)
    counts = torch.arange(1, v.numel() + 1, dtype=v.dtype)
    thresholds = (descending.cumsum(0) - 1.0) / counts
    last = int((descending > thresholds).nonzero().max())
    return (v - thresholds[last]).clamp_(min=0.0)
