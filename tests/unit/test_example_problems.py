"""The examples' variational inequalities: gaps in closed form, and the table of a short run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import _problems  # noqa: E402

HALF = 6


def made(name):
    return getattr(_problems, name)(HALF, np.random.default_rng(3))


def solution(problem):
    """A zero of an affine field: A(z) = Jz + A(0)."""
    zero = problem.operator(torch.zeros(2 * HALF, dtype=torch.float64))
    columns = [problem.operator(e) - zero for e in torch.eye(2 * HALF, dtype=torch.float64)]
    return torch.linalg.solve(torch.stack(columns, dim=1), -zero)


@pytest.mark.parametrize("name", ["bilinear", "quadratic"])
def test_gaps_over_a_ball_are_the_largest_product_that_a_search_finds(name):
    """Gap_C(z) = sup over x in C of <A(x), z - x>, C a ball around the solution that holds z."""
    problem = made(name)
    star = solution(problem)
    generator = torch.Generator().manual_seed(0)
    offset = torch.randn(2 * HALF, generator=generator, dtype=torch.float64)
    z = star + 0.7 * offset / offset.norm()
    x = star.clone()
    for _ in range(3000):  # the product is concave in x: ascent finds its maximum
        x.requires_grad_()
        value = problem.operator(x) @ (z - x)
        (slope,) = torch.autograd.grad(value, x)
        x = x.detach() + 0.3 * slope
        away = x - star
        x = star + away / max(1.0, float(away.norm()))
    found = float(problem.operator(x) @ (z - x))
    assert found == pytest.approx(problem.gap(z), rel=1e-3)
    assert problem.gap(star) == pytest.approx(0, abs=1e-9)


def test_the_gap_of_a_matrix_game_is_what_best_answers_gain():
    problem = made("matrix_game")
    generator = torch.Generator().manual_seed(1)
    z = problem.project(torch.randn(2 * HALF, generator=generator, dtype=torch.float64))
    corners = torch.eye(HALF, dtype=torch.float64)
    products = [
        float(problem.operator(v) @ (z - v))
        for x in corners
        for y in corners
        for v in [torch.cat([x, y])]
    ]
    # <A(v), z - v> is affine in v for a skew field: its supremum is at a corner.
    assert problem.gap(z) == pytest.approx(max(products), abs=1e-12)
    assert problem.gap(z) > 0


def test_projection_onto_the_simplex_is_the_nearest_point():
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        v = 2 * torch.randn(HALF, generator=generator, dtype=torch.float64)
        p = _problems.onto_simplex(v)
        assert p.min() >= 0 and float(p.sum()) == pytest.approx(1)
        others = torch.rand(200, HALF, generator=generator, dtype=torch.float64)
        others /= others.sum(1, keepdim=True)
        # Nearest point of a convex set: no other point lies on v's side of it.
        assert float(((others - p) @ (v - p)).max()) <= 1e-9


def test_a_short_run_prints_slopes_and_draws(tmp_path):
    words = ["--iterations", "60", "--d", "32", "--noise", "absolute", "--out", "gap.png"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "variational_inequality.py"), *words],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "quantized by Compression.layerwise(bits=3)" in done.stdout
    rows = [line.split("absolute")[1].split() for line in done.stdout.splitlines()
            if " absolute " in line]  # fmt: skip
    # Three problems, four methods, and all but descent-ascent quantised as well.
    assert len(rows) == 3 * 7
    assert sum(row[0] == "QODA" for row in rows) == 3 * 4
    sent = [
        next(i for i, word in enumerate(row) if word in ("float32", "quantized")) for row in rows
    ]
    exchanges = {(row[0], int(row[at + 1])) for row, at in zip(rows, sent, strict=True)}
    assert exchanges == {("QODA", 60), ("Q-GenX", 120), ("SGDA", 60)}
    assert (tmp_path / "gap.png").read_bytes().startswith(b"\x89PNG")
