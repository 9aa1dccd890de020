"""L-GreCo: which parameter for which layer, as pure functions (docs/theory.md §7).

Every layer has options (numbers of bits, or ranks of PowerSGD), each with a size and an error. The
cheapest combination within an error budget is found by dynamic programming, after L-GreCo (arXiv
2210.17357).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

BINS = 1_000
"""Steps into which the error budget is divided where more combinations than this are worth keeping.
A layer then loses at most one step. 1,000 layers of 7 options take 0.2 s."""


def allocate(
    sizes: Sequence[npt.ArrayLike],
    errors: Sequence[npt.ArrayLike],
    budget: float,
    default: Sequence[int] | None = None,
    bins: int = BINS,
) -> list[int]:
    """Options that minimise the sum of sizes while the sum of errors stays within ``budget``.

    The better one of two choices. Dynamic programming is exact while no more than ``bins`` partial
    choices are worth keeping, as with six layers of five options; beyond, one is kept for each
    multiple of ``budget / bins`` of the error. Taking the best exchange of error for size again and
    again is at most one layer's step off, which is little where layers are many. Errors are never
    rounded, so the constraint holds for them. Time and memory are at most layers x options x bins.

    Args:
        sizes: for each layer, the size of each of its options; any unit, >= 0.
        errors: for each layer, the error of each option, >= 0; ``inf`` forbids an option.
        budget: largest sum of errors, >= 0; see :func:`error_budget`.
        default: a third choice to take where both are larger and its own errors fit.
        bins: see :data:`BINS`.

    Returns:
        The index of the chosen option for each layer.

    Raises:
        ValueError: no combination fits the budget, or the arguments make no sense; the message
            names the layer where there is one.
    """
    table_sizes = [_row("sizes", i, row) for i, row in enumerate(sizes)]
    table_errors = [_row("errors", i, row) for i, row in enumerate(errors)]
    _check(table_sizes, table_errors, budget, bins)
    choices = [
        _programme(table_sizes, table_errors, budget, bins),
        _greedy(table_sizes, table_errors, budget),
        None if default is None else [int(option) for option in default],
    ]
    fitting = [c for c in choices if c is not None and _total(table_errors, c) <= budget]
    if not fitting:
        least = sum(float(row.min()) for row in table_errors)
        raise ValueError(
            f"no choice has errors that add up to {budget:.4g} or less: the smallest sum is "
            f"{least:.4g}; raise the budget (allocation_alpha) or offer finer options"
        )
    return min(fitting, key=lambda choice: _total(table_sizes, choice))


def error_budget(
    errors: Sequence[npt.ArrayLike], default: Sequence[int], alpha: float = 1.0
) -> float:
    """``alpha`` times the sum of the default choice's errors; inf where one of them is.

    Raises:
        ValueError: ``alpha`` is not positive and finite.
    """
    if not 0 < alpha < math.inf:
        raise ValueError(f"allocation_alpha must be positive and finite, not {alpha!r}")
    rows = [_row("errors", i, row) for i, row in enumerate(errors)]
    return alpha * _total(rows, default)


def combine_errors(
    squared: npt.ArrayLike, kind: str = "squared", weight: float = 1.0, scale: float = 1.0
) -> npt.NDArray[np.float64]:
    """Errors of a layer's options as the budget adds them up.

    Args:
        squared: squared Frobenius norms of the errors.
        kind: "squared" for these, the quantity that variances add up in; "frobenius" for their
            roots, as in L-GreCo's code; "relative" for squared errors over ``scale``, the layer's
            own mean square: what an optimizer feels that divides by it, as Adam does.
        weight: sensitivity of the loss to this layer's squared error, relative to other layers.
        scale: mean square of the layer's coordinates; only "relative" uses it.

    Raises:
        ValueError: no such kind.
    """
    values = weight * np.asarray(squared, dtype=np.float64)
    if kind == "squared":
        return values
    if kind == "frobenius":
        return np.sqrt(values)
    if kind == "relative":
        return values / scale if scale > 0 else np.zeros_like(values)
    raise ValueError(f"allocation_error must be squared, frobenius or relative, not {kind!r}")


LEAST_RATE = 2.0
"""A matrix that PowerSGD would not at least halve travels as it is: an approximation and its
products cost more than that saves. Rule and value are those of PyTorch's PowerSGD hook."""


def low_rank_numbers(shape: Sequence[int], rank: int, least_rate: float = LEAST_RATE) -> int:
    """Numbers that PowerSGD sends for a tensor at a rank: r (m + n) for m x n.

    A tensor of more dimensions counts as shape[0] rows. One with fewer than two dimensions, or
    whose compression would be below ``least_rate``, is sent as it is.
    """
    numel = math.prod(shape)
    if len(shape) < 2 or numel == 0:
        return numel
    rows, columns = shape[0], numel // shape[0]
    numbers = min(rank, rows, columns) * (rows + columns)
    return numbers if numel >= least_rate * numbers else numel


def low_rank_ratio(
    shapes: Sequence[Sequence[int]], rank: int, least_rate: float = LEAST_RATE
) -> float:
    """Compression ratio of a model under PowerSGD at one rank, by counting numbers."""
    sent = sum(low_rank_numbers(shape, rank, least_rate) for shape in shapes)
    return sum(math.prod(shape) for shape in shapes) / sent


def _programme(
    sizes: Sequence[npt.NDArray[np.float64]],
    errors: Sequence[npt.NDArray[np.float64]],
    budget: float,
    bins: int,
) -> list[int] | None:
    """The cheapest choice, by the Pareto front of (error, size), layer by layer; or None."""
    least = np.array([row.min() for row in errors])
    ahead = np.append(np.cumsum(least[::-1])[::-1], 0.0)[1:]
    rounding = 4 * np.finfo(np.float64).eps * len(sizes) * budget
    front_error, front_size = np.zeros(1), np.zeros(1)
    steps = []
    for size, error, to_come in zip(sizes, errors, ahead, strict=True):
        # Option by option, so that the errors are sorted runs.
        all_errors = (error[:, None] + front_error).ravel()
        all_sizes = (size[:, None] + front_size).ravel()
        order = np.argsort(all_errors, kind="stable")
        # Where nothing is left to come there is nothing that could have been rounded.
        limit = budget - to_come + rounding * bool(to_come)
        order = order[: np.searchsorted(all_errors[order], limit, side="right")]
        if not order.size:
            return None
        order = order[_falls(all_sizes[order])]
        if order.size > bins and budget:
            order = order[_last_of_each(all_errors[order] / budget * bins)]
        steps.append(np.divmod(order, front_error.size))
        front_error, front_size = all_errors[order], all_sizes[order]
    state, chosen = -1, []
    for options, before in reversed(steps):
        chosen.append(int(options[state]))
        state = before[state]
    return chosen[::-1]


def _greedy(
    sizes: Sequence[npt.NDArray[np.float64]],
    errors: Sequence[npt.NDArray[np.float64]],
    budget: float,
) -> list[int]:
    """From the least errors, the moves that save most size for the error they add, while it lasts.

    Moves follow each layer's lower convex hull, on which what a move saves only falls.
    """
    chosen, moves = [], []
    for layer, (size, error) in enumerate(zip(sizes, errors, strict=True)):
        hull: list[int] = []
        for option in np.lexsort((size, error)):
            if hull and (size[option] >= size[hull[-1]] or math.isinf(error[option])):
                continue
            while len(hull) > 1 and (
                _saved(size, error, *hull[-2:]) <= _saved(size, error, hull[-1], option)
            ):
                hull.pop()
            hull.append(int(option))
        chosen.append(hull[0])
        moves += [(_saved(size, error, a, b), layer, a, b) for a, b in pairwise(hull)]
    left = budget - _total(errors, chosen)
    for _, layer, a, b in sorted(moves, key=lambda move: -move[0]):
        added = errors[layer][b] - errors[layer][a]
        if chosen[layer] == a and added <= left:
            chosen[layer] = b
            left -= added
    return chosen


def _saved(size: npt.NDArray[np.float64], error: npt.NDArray[np.float64], a: int, b: int) -> float:
    """Size saved for each unit of error added by going from option a to b."""
    return float(size[a] - size[b]) / float(error[b] - error[a])


def _falls(sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which are smaller than all before them."""
    least = np.minimum.accumulate(sizes)
    return np.append(True, least[1:] < least[:-1])


def _last_of_each(positions: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which of these rising positions are the last in a whole step; and the first of all.

    The first has the least error: with it, a budget that can be kept is kept.
    """
    keep = np.append(np.diff(np.floor(positions)) > 0, True)
    keep[0] = True
    return keep


def _total(rows: Sequence[npt.NDArray[np.float64]], choice: Sequence[int]) -> float:
    return sum(float(row[option]) for row, option in zip(rows, choice, strict=True))


def _row(name: str, layer: int, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    row = np.asarray(values, dtype=np.float64).ravel()
    if not row.size or np.isnan(row).any() or (row < 0).any():
        raise ValueError(
            f"{name} of layer {layer} must be one or more numbers >= 0, not {values!r}"
        )
    return row


def _check(
    sizes: Sequence[npt.NDArray[np.float64]],
    errors: Sequence[npt.NDArray[np.float64]],
    budget: float,
    bins: int,
) -> None:
    if len(sizes) != len(errors):
        raise ValueError(f"sizes of {len(sizes)} layers but errors of {len(errors)}")
    for i, (size, error) in enumerate(zip(sizes, errors, strict=True)):
        if len(size) != len(error):
            raise ValueError(f"layer {i} has {len(size)} sizes but {len(error)} errors")
    if not 0 <= budget < math.inf:
        raise ValueError(f"the error budget must be finite and >= 0, not {budget!r}")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins!r}")
