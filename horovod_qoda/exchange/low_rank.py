"""PowerSGD: gradients as products of two thin matrices, found by one step of subspace iteration.

Vogels, Karimireddy, Jaggi 2019 (arXiv 1905.13727). It is biased, so each rank keeps what it could
not send and adds it to its next gradient (error feedback); everything else here is unbiased and
needs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from horovod_qoda.coding import change_stats
from horovod_qoda.exchange.allreduce import gather_sums
from horovod_qoda.exchange.buffer import ExchangeBuffer
from horovod_qoda.exchange.step import Step
from horovod_qoda.exchange.worker import Steps
from horovod_qoda.layout import Buffer


@dataclass(frozen=True)
class Matrix:
    """A layer as PowerSGD sees it: the shorter of shape[0] and all other dimensions as rows.

    Rows are what the basis has, and it is that which travels once more and is orthogonalised.
    """

    layer: int
    name: str
    rows: int
    columns: int
    transposed: bool = False
    """Whether the columns are shape[0]."""

    @property
    def largest_rank(self) -> int:
        return self.rows


def matrix(layer: int, name: str, shape: tuple[int, ...]) -> Matrix:
    """The matrix of a layer with two or more dimensions."""
    first, others = shape[0], int(np.prod(shape[1:], dtype=np.int64))
    return Matrix(layer, name, min(first, others), max(first, others), first > others)


class LowRank:
    """PowerSGD's memory for the layers of one exchange buffer, on one rank.

    Attributes:
        ranks: by layer; the same on all ranks of the job.
        residual: what this rank has not been able to send, laid out as the buffer is; float32.
        warm: by layer, Q of the last exchange, [columns, its rank] float32: subspaces move slowly,
            so it starts the next iteration. Equal on all ranks because it came out of an
            all-reduce. Ranks that resume with different ones still agree on the mean.
        summed: this rank's last gradients added up, while an allocation of ranks draws near.

    Args:
        plan: the buffer.
        matrices: its layers, in its order.
        ranks: by layer.
        seed: of the first Q; the same on all ranks.
    """

    def __init__(
        self, plan: Buffer, matrices: list[Matrix], ranks: dict[int, int], seed: int
    ) -> None:
        self.matrices = matrices
        self.residual = np.zeros(plan.size, np.float32)
        self.summed: np.ndarray | None = None
        self.ranks: dict[int, int] = {}
        self.warm: dict[int, np.ndarray] = {}
        self._seed = seed
        self._offsets = dict(zip(plan.layers, plan.offsets, strict=True))
        self.set_ranks(ranks)

    def set_ranks(self, ranks: dict[int, int]) -> None:
        """Changes ranks from the next exchange on.

        Raises:
            ValueError: a rank that the layer cannot have.
        """
        for m in self.matrices:
            rank = ranks[m.layer]
            if not 1 <= rank <= m.largest_rank:
                raise ValueError(
                    f"layer {m.name!r} is a {m.rows} x {m.columns} matrix: its rank must be from "
                    f"1 to {m.largest_rank}, not {rank}"
                )
            self.ranks[m.layer] = rank

    def start(self, m: Matrix) -> np.ndarray:
        """Q to start from, [columns, rank]: the last one's leading columns, more where needed."""
        rank = self.ranks[m.layer]
        warm = self.warm.get(m.layer, np.zeros((m.columns, 0), np.float32))
        more = [self._draw(m, column, 0) for column in range(warm.shape[1], rank)]
        return np.column_stack([warm[:, :rank], *more]) if more else warm[:, :rank]

    def view(self, m: Matrix, array: np.ndarray) -> np.ndarray:
        """The layer's matrix in an array that is laid out as the buffer is."""
        start = self._offsets[m.layer]
        flat = array[start : start + m.rows * m.columns]
        return flat.reshape(m.columns, m.rows).T if m.transposed else flat.reshape(m.rows, -1)

    def renew(self, m: Matrix, q: np.ndarray, exchange: int) -> None:
        """Makes ``q`` the start of the next iteration.

        A column of zeros would stay zero whatever comes, so a new one is drawn in its place.
        """
        for column in np.flatnonzero(~q.any(axis=0)):
            q[:, column] = self._draw(m, int(column), exchange + 1)
        self.warm[m.layer] = q

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint of this rank needs, by name."""
        summed = {} if self.summed is None else {"summed": self.summed}
        warm = {f"warm.{i}": q for i, q in self.warm.items()}
        return {"residual": self.residual, **warm, **summed}

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Takes :meth:`state` back.

        Raises:
            ValueError: it is of another model; the layer is named.
        """
        if state["residual"].shape != self.residual.shape:
            raise ValueError(
                f"the residual has {len(state['residual'])} coordinates, here it has "
                f"{len(self.residual)}: the model or fusion_mb has changed"
            )
        warm = {m.layer: state.get(f"warm.{m.layer}") for m in self.matrices}
        for m in self.matrices:
            q = warm[m.layer]
            if q is not None and (q.ndim != 2 or len(q) != m.columns):
                raise ValueError(
                    f"layer {m.name!r}: Q was saved as {q.shape}, here it has {m.columns} rows"
                )
        self.residual[:] = state["residual"]
        self.warm = {layer: q.copy() for layer, q in warm.items() if q is not None}
        self.summed = state["summed"].copy() if "summed" in state else None

    def forget(self) -> None:
        """Starts anew: no residual, and the first Q."""
        self.residual[:] = 0
        self.summed = None
        self.warm = {}

    def _draw(self, m: Matrix, column: int, exchange: int) -> np.ndarray:
        key = [self._seed, m.layer << 32 | column]
        random = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, exchange, 0]))
        return random.standard_normal(m.columns, np.float32)


def low_rank(step: Step, buffer: ExchangeBuffer, state: LowRank) -> Steps:
    """Job that exchanges one buffer of matrices and leaves the mean in ``buffer.mean``.

    For each matrix, on rank k of K:

    1. M_k = G_k + E_k, this rank's gradient and residual.
    2. P_k = M_k Q with the last exchange's Q; all-reduced.
    3. P̂ = an orthonormal basis of P's columns, by QR.
    4. Q_k = M_kᵀ P̂; all-reduced, Q = Σ_k Q_k / K, which is also the next exchange's start.
    5. The mean is P̂ Qᵀ, and E_k = M_k − P̂ Q_kᵀ.

    So K times the mean and all residuals add up to all gradients: nothing is lost. A layer that is
    not finite on some rank is not finite in P, hence NaN in every rank's mean; its residual and Q
    stay as they were, so one bad step costs one step.

    M is the layer's matrix or its transpose, whichever has fewer rows: rank 0's P̂ is gathered by
    all. So the mean is the same bits everywhere, also on unlike processors, since P̂ Qᵀ is summed
    column by column, by products and sums that IEEE 754 fixes.
    """
    if not state.matrices:
        return
    index, count = buffer.plan.index, step.transport.size
    work = buffer.scratch("low_rank", buffer.plan.size)
    np.add(buffer.values, state.residual, out=work)
    views = {m.layer: state.view(m, work) for m in state.matrices}

    thin = _join([views[m.layer] @ state.start(m) for m in state.matrices])
    step.tally.payload_bytes += thin.nbytes
    total = yield step.transport.allreduce(step.name(index, 0), thin)
    bases = {}
    for m, p in zip(state.matrices, _split(total, state, "rows"), strict=True):
        bases[m.layer] = np.linalg.qr(p)[0] if np.isfinite(p).all() else None
    # QR's last bits depend on the processor and on BLAS's threads: rank 0's is everybody's.
    found = {layer: basis for layer, basis in bases.items() if basis is not None}
    if found:
        sent = _join(list(found.values())) if step.transport.rank == 0 else np.zeros(0, np.float32)
        step.tally.payload_bytes += sent.nbytes
        agreed = yield step.transport.allgather(step.name(index, 0) + ".basis", sent)
        at = 0
        for layer, mine in found.items():
            bases[layer] = agreed[at : at + mine.size].reshape(mine.shape)
            at += mine.size

    own = {m.layer: _project(views[m.layer], bases[m.layer], state, m) for m in state.matrices}
    wide = _join([own[m.layer] for m in state.matrices])
    step.tally.payload_bytes += wide.nbytes
    total = yield step.transport.allreduce(step.name(index, 1), wide)

    for m, q in zip(state.matrices, _split(total, state, "columns"), strict=True):
        basis, mean = bases[m.layer], state.view(m, buffer.mean)
        if basis is None or not np.isfinite(q).all():
            mean.fill(np.nan)
            views[m.layer].fill(np.nan)
            continue
        q = q * np.float32(1 / count)
        product(basis, q, mean)
        views[m.layer] -= basis @ own[m.layer].T
        state.renew(m, q, step.number)
    if step.wants_sums:
        yield from _sums(step, buffer, state, work)
    for m in state.matrices:
        if np.isfinite(views[m.layer]).all():
            state.view(m, state.residual)[:] = views[m.layer]


def _sums(step: Step, buffer: ExchangeBuffer, state: LowRank, left: np.ndarray) -> Steps:
    """QODA's sums over nodes of what each rank contributed, G_k + E_k − E_k,new = P̂ Q_kᵀ."""
    if buffer.previous is None:
        buffer.previous = np.zeros_like(buffer.values)
    sent = buffer.scratch("own", len(buffer.values))
    np.add(buffer.values, state.residual, out=sent)
    sent -= left
    square, _, change = change_stats(sent, buffer.previous)
    finite = np.isfinite(sent)
    sent[~finite] = buffer.previous[~finite]
    buffer.remember(sent)
    yield from gather_sums(step, buffer.plan.index, square, change)


def product(basis: np.ndarray, q: np.ndarray, out: np.ndarray) -> None:
    """out = basis qᵀ without BLAS, whose order of summation is its own affair."""
    np.multiply.outer(basis[:, 0], q[:, 0], out=out)
    term = np.empty_like(out)
    for column in range(1, basis.shape[1]):
        np.multiply.outer(basis[:, column], q[:, column], out=term)
        out += term


def _project(view: np.ndarray, basis: np.ndarray | None, state: LowRank, m: Matrix) -> np.ndarray:
    if basis is None:
        return np.full((m.columns, state.ranks[m.layer]), np.nan, np.float32)
    return view.T @ basis


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([part.ravel() for part in parts])


def _split(total: Any, state: LowRank, side: str) -> list[np.ndarray]:
    """The matrices [rows or columns, rank] of all layers in what an all-reduce returned."""
    shapes = [(getattr(m, side), state.ranks[m.layer]) for m in state.matrices]
    ends = np.cumsum([a * b for a, b in shapes])
    parts = np.split(total, ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
