"""Level sequences of the layer-wise quantiser (docs/theory.md §2).

A sequence is float32 [s + 2], rising strictly from 0 to 1, with s levels in between. A coordinate
with |v| / norm in [l_j, l_{j+1}) goes up with probability (|v| / norm - l_j) / (l_{j+1} - l_j).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Levels = npt.NDArray[np.float32]

MOST_LEVELS = 126  # s + 2 <= 128 magnitudes: with their signs they fit the 255 codes


def _check_count(s: int) -> None:
    if not isinstance(s, int | np.integer) or not 0 <= s <= MOST_LEVELS:
        raise ValueError(f"the number of inner levels must be an integer in 0..{MOST_LEVELS}: {s}")


def uniform(s: int) -> Levels:
    """j / (s + 1) for j = 0..s + 1, as in QSGD (Alistarh et al., arXiv 1610.02132).

    >>> uniform(3).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    _check_count(s)
    return (np.arange(s + 2) / (s + 1)).astype(np.float32)


def exponential(s: int, ratio: float = 0.5) -> Levels:
    """0, ratio**s, …, ratio, 1. The default ratio is NUQSGD's (arXiv 1908.06077).

    >>> exponential(2).tolist()
    [0.0, 0.25, 0.5, 1.0]
    """
    _check_count(s)
    if not 0.0 < ratio < 1.0:
        raise ValueError(f"ratio must lie strictly between 0 and 1: {ratio}")
    levels = np.concatenate([[0.0], ratio ** np.arange(s, -1, -1.0)]).astype(np.float32)
    if not (np.diff(levels) >= np.float32(2.0**-120)).all():
        raise ValueError(f"ratio {ratio} with {s} levels underflows float32; use fewer levels")
    return levels


def ternary() -> Levels:
    """{0, 1}, with the sign three values, as in TernGrad (arXiv 1705.07878).

    >>> ternary().tolist()
    [0.0, 1.0]
    """
    return uniform(0)
