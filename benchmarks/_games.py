"""The bilinear game of docs/theory.md §6, its noise, and baselines to compare QODA with.

min over x, max over y of (x − x*)ᵀ B (y − y*), with B square and its singular values in [0.3, 1].
The field A(z) = (B (y − y*), −Bᵀ (x − x*)) is J (z − z*) with J skew, so the gap over a ball of
radius D around z* at a point z is exactly D ‖A(z)‖.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from horovod_qoda.qoda import QODA

Noise = Callable[[Tensor, torch.Generator], Tensor]


@dataclass
class BilinearGame:
    """A game of d coordinates, x and y stacked, in float64."""

    d: int = 40
    seed: int = 0
    field_matrix: Tensor = field(init=False)
    solution: Tensor = field(init=False)

    def __post_init__(self) -> None:
        half = self.d // 2
        rng = np.random.default_rng(self.seed)
        left, _ = np.linalg.qr(rng.standard_normal((half, half)))
        right, _ = np.linalg.qr(rng.standard_normal((half, half)))
        coupling = left @ np.diag(np.linspace(0.3, 1.0, half)) @ right.T
        skew = np.zeros((self.d, self.d))
        skew[:half, half:] = coupling
        skew[half:, :half] = -coupling.T
        self.field_matrix = torch.from_numpy(skew)
        solution = rng.standard_normal(self.d)
        self.solution = torch.from_numpy(solution / np.linalg.norm(solution))

    def operator(self, z: Tensor) -> Tensor:
        """A(z), shape (d,)."""
        return self.field_matrix @ (z - self.solution)

    def residual(self, z: Tensor) -> float:
        """‖A(z)‖: the gap over the unit ball around the solution."""
        return float(torch.linalg.vector_norm(self.operator(z.double())))


def noiseless(exact: Tensor, generator: torch.Generator) -> Tensor:
    """The exact field."""
    return exact


def absolute(sigma: float) -> Noise:
    """E‖V − A‖² = sigma²."""

    def noise(exact: Tensor, generator: torch.Generator) -> Tensor:
        draw = torch.randn(exact.shape, generator=generator, dtype=exact.dtype)
        return exact + draw * (sigma / exact.shape[-1] ** 0.5)

    return noise


def relative(variance: float) -> Noise:
    """E‖V − A‖² = variance · ‖A‖²."""

    def noise(exact: Tensor, generator: torch.Generator) -> Tensor:
        draw = torch.randn(exact.shape, generator=generator, dtype=exact.dtype)
        size = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        return exact + draw * (size * (variance / exact.shape[-1]) ** 0.5)

    return noise


def node_vectors(
    game: BilinearGame, z: Tensor, nodes: int, noise: Noise, generator: torch.Generator
) -> Tensor:
    """V_k at z for all nodes, shape (nodes, d)."""
    return noise(game.operator(z).expand(nodes, -1), generator)


def slope(exchanges: Iterable[int], residuals: Iterable[float]) -> float:
    """Least-squares exponent of residual over exchanges, on a log-log scale."""
    return float(np.polyfit(np.log(list(exchanges)), np.log(list(residuals)), 1)[0])


def q_genx(
    game: BilinearGame, iterations: int, nodes: int, noise: Noise, seed: int = 0
) -> tuple[Tensor, int]:
    """Q-GenX in its dual-extrapolation form: the mean of X_{t+1/2}, and the exchanges it took."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.zeros(game.d, dtype=torch.float64)
    dual, mean, total, exchanges = torch.zeros_like(base), torch.zeros_like(base), 0.0, 0
    for t in range(iterations):
        rate = (1.0 + total) ** -0.5
        first = node_vectors(game, base, nodes, noise, generator)
        lead = base - rate * first.mean(0)
        second = node_vectors(game, lead, nodes, noise, generator)
        exchanges += 2
        mean += (lead - mean) / (t + 1)
        dual -= second.mean(0)
        total += float((first - second).square().sum()) / nodes**2
        base = (1.0 + total) ** -0.5 * dual
    return mean, exchanges


def uniform_levels(vectors: Tensor, generator: torch.Generator) -> Tensor:
    """4-bit unbiased quantisation per node: sign and 8 uniform levels of v/‖v‖_∞."""
    norm = vectors.abs().amax(-1, keepdim=True)
    scaled = vectors.abs() / norm * 7
    up = torch.rand(vectors.shape, generator=generator, dtype=vectors.dtype)
    return vectors.sign() * torch.floor(scaled + up) * norm / 7


def play(
    game: BilinearGame,
    variant: str,
    noise: Noise,
    checkpoints: Iterable[int],
    *,
    nodes: int = 4,
    quantized: bool = False,
    seed: int = 0,
) -> list[float]:
    """‖A‖ at the mean of QODA's X_{t+1/2} after each of so many exchanges, rising."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.nn.Parameter(torch.zeros(game.d, dtype=torch.float64))
    optimizer = QODA([z], variant=variant)
    previous = torch.zeros(nodes, game.d, dtype=torch.float64)
    residuals = []
    wanted = list(checkpoints)
    for t in range(1, wanted[-1] + 1):
        vectors = node_vectors(game, z.detach(), nodes, noise, generator)
        if quantized:
            vectors = uniform_levels(vectors, generator)
        z.grad = vectors.mean(0)
        optimizer.receive_sums(
            float(vectors.square().sum()) / nodes**2,
            float((vectors - previous).square().sum()) / nodes**2,
        )
        previous = vectors
        optimizer.step()
        if t in wanted:
            with optimizer.average():
                residuals.append(game.residual(z.detach()))
    return residuals
