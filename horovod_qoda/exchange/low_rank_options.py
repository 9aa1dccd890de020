"""L-GreCo for PowerSGD: which ranks a layer could have, what they cost, and which it gets.

A rank's error is what the best approximation of that rank leaves of the sum of a node's last
gradients: the tail of its squared singular values. PowerSGD comes close to it with a warm start.
"""

from __future__ import annotations

import numpy as np

from horovod_qoda.allocation import LEAST_RATE, allocate, combine_errors, error_budget
from horovod_qoda.exchange.low_rank import Matrix

MOST = 9
"""Ranks on offer: the layer's own times a power of the root of 2, from a quarter to four times."""


def candidates(m: Matrix, rank: int) -> tuple[int, ...]:
    """Ranks on offer for a matrix whose own is ``rank``, rising.

    Those that would not compress by :data:`LEAST_RATE` are left out, the own one never is.
    """
    most = m.rows * m.columns / (LEAST_RATE * (m.rows + m.columns))
    offered = {round(rank * 2 ** (k / 2)) for k in range(-4, 5)}
    limit = min(most, m.largest_rank)
    return tuple(sorted({rank, *(r for r in offered if 1 <= r <= limit)}))


def tails(gradient: np.ndarray, ranks: tuple[int, ...]) -> np.ndarray:
    """Squared Frobenius error of the best approximation of each rank, float64.

    Args:
        gradient: [rows, columns]; zeros are returned where it is not finite.
    """
    g = gradient.astype(np.float64)
    if not np.isfinite(g).all():
        return np.zeros(len(ranks))
    # Eigenvalues of the smaller Gram matrix are the squared singular values.
    gram = g @ g.T if g.shape[0] <= g.shape[1] else g.T @ g
    squares = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)
    left = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    return left[list(ranks)]


def choose(
    matrices: list[Matrix],
    own: list[int],
    errors: list[np.ndarray],
    squares: list[float],
    *,
    kind: str,
    weights: list[float],
    alpha: float,
) -> dict[int, int]:
    """The rank of every layer that sends least within the error of the layers' own ranks.

    Args:
        own: each layer's rank where nothing is allocated, the default of the budget.
        errors: of each layer's :func:`candidates`, from :func:`tails`, summed over nodes.
        squares: mean square of each layer's coordinates, for ``kind="relative"``.
        kind, weights, alpha: see :mod:`horovod_qoda.allocation`.

    Returns:
        By layer.
    """
    offered = [candidates(m, rank) for m, rank in zip(matrices, own, strict=True)]
    sizes = [
        [float(rank * (m.rows + m.columns)) for rank in ranks]
        for m, ranks in zip(matrices, offered, strict=True)
    ]
    costs = [
        combine_errors(error, kind, weight, square)
        for error, weight, square in zip(errors, weights, squares, strict=True)
    ]
    default = [ranks.index(rank) for ranks, rank in zip(offered, own, strict=True)]
    choice = allocate(sizes, costs, error_budget(costs, default, alpha), default)
    return {
        m.layer: ranks[option] for m, ranks, option in zip(matrices, offered, choice, strict=True)
    }
