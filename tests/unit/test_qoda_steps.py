"""QODA's recursion: by hand, against a NumPy reference, and what its rates may depend on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from horovod_qoda.qoda import QODA
from horovod_qoda.qoda.qoda import learning_rates

VARIANTS = ("coupled", "separated")


@dataclass
class Reference:
    """The recursion of docs/theory.md §6 in float64, index for index, everything kept."""

    start: np.ndarray
    lr: np.ndarray
    variant: str
    q_hat: float = 0.25

    def __post_init__(self) -> None:
        self.x = [self.start.copy()]  # X_1, X_2, …
        self.lead = [self.start.copy()]  # X_{1+1/2}, …
        self.y = np.zeros_like(self.start)
        self.vectors: list[np.ndarray] = []  # V̂_{k,t+1/2}, shape (K, d), t = 1, 2, …

    def rates(self, t: int) -> tuple[float, float]:
        """(γ_t, η_t), t from 1, with V̂_{k,1/2} = 0."""
        nodes = self.vectors[0].shape[0] if self.vectors else 1
        zero = np.zeros((nodes, self.start.size))
        if self.variant == "coupled":
            total = 0.0
            for s in range(1, t):
                before = self.vectors[s - 2] if s >= 2 else zero
                total += ((self.vectors[s - 1] - before) ** 2).sum() / nodes**2
            return (1 + total) ** -0.5, (1 + total) ** -0.5
        squares = moves = 0.0
        for s in range(1, t - 1):
            squares += (self.vectors[s - 1] ** 2).sum() / nodes**2
            moves += ((self.x[s - 1] - self.x[s]) ** 2).sum()
        return (1 + squares) ** (self.q_hat - 0.5), (1 + squares + moves) ** -0.5

    def step(self, vectors: np.ndarray) -> None:
        self.vectors.append(vectors)
        t = len(self.vectors)
        mean = vectors.mean(0)
        self.y = self.y - self.lr * mean
        gamma, eta = self.rates(t + 1)
        self.x.append(self.start + eta * self.y)
        self.lead.append(self.x[-1] - self.lr * gamma * mean)


def split(vector: np.ndarray) -> list[torch.nn.Parameter]:
    """A (12,) vector as three parameters, one of them 2-D."""
    return [
        torch.nn.Parameter(torch.from_numpy(vector[:6].copy()).reshape(2, 3)),
        torch.nn.Parameter(torch.from_numpy(vector[6:7].copy())),
        torch.nn.Parameter(torch.from_numpy(vector[7:].copy())),
    ]


def set_grads(params: list[torch.nn.Parameter], vector: np.ndarray) -> None:
    for param, part in zip(params, split(vector), strict=True):
        param.grad = part.detach().clone().to(param.dtype)


def joined(params: list[torch.nn.Parameter]) -> np.ndarray:
    return torch.cat([param.detach().reshape(-1).double() for param in params]).numpy()


def test_two_coupled_steps_by_hand() -> None:
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = QODA([p], lr=0.5)
    p.grad = torch.tensor([3.0, 0.0], dtype=torch.float64)
    optimizer.step()
    # Y_2 = −0.5 (3, 0); η_2 = γ_2 = (1 + 9)^{−1/2}; lead = X_1 + η_2 Y_2 − 0.5 γ_2 (3, 0)
    rate = 10**-0.5
    np.testing.assert_allclose(p.detach(), [1.0 - 3.0 * rate, 2.0], rtol=1e-15)
    p.grad = torch.tensor([1.0, 4.0], dtype=torch.float64)
    optimizer.step()
    # differences (−2, 4): sum 9 + 20; Y_3 = (−2, −2)
    rate = 30**-0.5
    expected = [1.0 - 2.0 * rate - 0.5 * rate, 2.0 - 2.0 * rate - 2.0 * rate]
    np.testing.assert_allclose(p.detach(), expected, rtol=1e-15)
    assert optimizer.rates() == (rate, rate)


def test_three_separated_steps_by_hand() -> None:
    p = torch.nn.Parameter(torch.tensor([0.0], dtype=torch.float64))
    optimizer = QODA([p], variant="separated", q_hat=0.25)
    for grad, gamma, eta, dual in (
        (2.0, 1.0, 1.0, -2.0),  # two steps of lag: γ_2 = η_2 = 1, X_2 = −2
        (1.0, 5.0**-0.25, (1 + 4 + 4) ** -0.5, -3.0),  # ‖V_1‖² = 4, ‖X_1 − X_2‖² = 4; X_3 = −1
        (0.0, 6.0**-0.25, (1 + 5 + 4 + 1) ** -0.5, -3.0),  # + ‖V_2‖² = 1, + ‖X_2 − X_3‖² = 1
    ):
        p.grad = torch.tensor([grad], dtype=torch.float64)
        optimizer.step()
        assert optimizer.rates() == pytest.approx((gamma, eta), rel=1e-15)
        assert p.item() == pytest.approx(eta * dual - gamma * grad, rel=1e-15)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("nodes", [1, 4])
def test_fifty_steps_equal_the_reference(variant: str, nodes: int) -> None:
    seed = 17
    print("seed", seed)
    rng = np.random.default_rng(seed)
    start = rng.standard_normal(12)
    lr = np.concatenate([np.full(7, 0.7), np.full(5, 1.3)])
    params = split(start)
    optimizer = QODA(
        [{"params": params[:2], "lr": 0.7}, {"params": params[2:], "lr": 1.3}],
        variant=variant,
        q_hat=0.2,
    )
    reference = Reference(start, lr, variant, q_hat=0.2)
    previous = np.zeros((nodes, 12))
    for t in range(1, 51):
        np.testing.assert_allclose(joined(params), reference.lead[-1], rtol=1e-11, atol=1e-13)
        vectors = rng.standard_normal((nodes, 12)) + np.sin(reference.lead[-1])
        set_grads(params, vectors.mean(0))
        if nodes > 1:
            optimizer.receive_sums(
                (vectors**2).sum() / nodes**2, ((vectors - previous) ** 2).sum() / nodes**2
            )
        previous = vectors
        optimizer.step()
        reference.step(vectors)
        assert optimizer.rates() == pytest.approx(reference.rates(t + 1), rel=1e-11)
    with optimizer.average():
        mean = np.mean(reference.lead[:-1], axis=0)
        np.testing.assert_allclose(joined(params), mean, rtol=1e-10, atol=1e-12)


def test_received_move_replaces_the_own_one() -> None:
    rates = []
    for received in (None, 7.0):
        p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = QODA([p], variant="separated")
        for move in (0.0, received):
            p.grad = torch.ones(3, dtype=torch.float64)
            own = optimizer.last_move_sq()
            optimizer.receive_sums(3.0, 3.0, move)
            optimizer.step()
        assert own == 3.0
        rates.append(optimizer.rates()[1])
    assert rates == pytest.approx([(1 + 3 + 3) ** -0.5, (1 + 3 + 7) ** -0.5])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_rate_does_not_know_the_vector_it_multiplies(variant: str) -> None:
    """γ_t and η_t are the same whatever V_t is; V_t first shows in those of a later step."""
    seen = []
    for last in (1.0, -50.0):
        p = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        optimizer = QODA([p], variant=variant)
        before = []
        for t in range(8):
            p.grad = torch.full((2,), last if t == 7 else 0.3 * t)
            before.append(optimizer.rates())
            optimizer.step()
        seen.append((before, optimizer.rates()))
    (before, after), (before_altered, after_altered) = seen
    assert before == before_altered
    if variant == "separated":  # lags by one step more
        assert after == after_altered
    else:
        assert after != after_altered


@given(
    st.sampled_from(VARIANTS),
    st.floats(0.01, 0.25),
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=20),
)
def test_rates_never_rise_and_eta_never_exceeds_gamma(
    variant: str, q_hat: float, grads: list[float]
) -> None:
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = QODA([p], variant=variant, q_hat=q_hat)
    gamma, eta = optimizer.rates()
    assert (gamma, eta) == (1.0, 1.0)
    for grad in grads:
        p.grad = torch.tensor([grad, -2.0 * grad])
        optimizer.step()
        new_gamma, new_eta = optimizer.rates()
        assert 0.0 < new_gamma <= gamma and 0.0 < new_eta <= eta
        assert new_eta <= new_gamma
        gamma, eta = new_gamma, new_eta


def test_learning_rates_is_the_formula() -> None:
    group = {"variant": "separated", "q_hat": 0.1, "sum_sq": 3.0, "sum_move_sq": 5.0}
    assert learning_rates(group) == (4.0**-0.4, 1 / 3)
    assert learning_rates({"variant": "coupled", "sum_sq_diff": 8.0}) == (1 / 3, 1 / 3)


def test_lr_stands_inside_the_sum() -> None:
    """A later change of lr leaves the steps already taken where they are."""
    p = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = QODA([p], lr=2.0)
    for lr in (2.0, 0.0, 0.0):
        optimizer.param_groups[0]["lr"] = lr
        p.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
    assert p.item() == pytest.approx(2**-0.5 * -2.0)


def test_maximize_mirrors_minimize() -> None:
    grads = [1.0, -0.5, 2.0]
    ends = []
    for sign, maximize in ((1.0, False), (-1.0, True)):
        p = torch.nn.Parameter(torch.ones(1))
        optimizer = QODA([p], maximize=maximize)
        for grad in grads:
            p.grad = torch.full((1,), sign * grad)
            optimizer.step()
        ends.append(p.item())
    assert ends[0] == ends[1]


def test_a_parameter_without_gradient_counts_as_a_zero_vector() -> None:
    ends = []
    for absent in (False, True):
        a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        optimizer = QODA([a, b])
        for t in range(4):
            a.grad = torch.full((2,), 1.0 + t)
            b.grad = torch.full((2,), 0.5) if t == 0 else None if absent else torch.zeros(2)
            optimizer.step()
        ends.append((a.tolist(), b.tolist(), optimizer.rates()))
    assert ends[0] == ends[1]
    assert ends[0][1] != [1.0, 1.0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_closure_is_evaluated_at_the_lead_and_returned(variant: str) -> None:
    p = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = QODA([p], variant=variant)
    losses = []
    for _ in range(3):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (p**2).sum()
            loss.backward()
            return loss

        here = p.item()
        losses.append(optimizer.step(closure))
        assert losses[-1].item() == pytest.approx(here**2)
    assert p.item() != 2.0


def test_project_keeps_every_point_in_the_set() -> None:
    class Box(QODA):
        def project_(self, params, points):
            for point in points:
                point.clamp_(-0.5, 0.5)

    p = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = Box([p], variant="separated")
    for _ in range(2):
        p.grad = torch.tensor([10.0, -0.1], dtype=torch.float64)
        optimizer.step()
        assert p.abs().max() <= 0.5
    # X_1 = 0, X_2 = (−0.5, 0.1): the move is measured between projected points.
    assert math.isclose(optimizer.param_groups[0]["sum_move_sq"], 0.26)
