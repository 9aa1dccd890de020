"""The rates of docs/theory.md §6 through MPI: 4 ranks, both topologies, quantised and not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks._games import slope
from tests.ranks import Runner

RANKS = 4
# Few bits, so that the error of quantisation matters beside the noise of the gradients.
BITS = 2

# Without noise, or with relative noise, residuals lie on a line from a few dozen exchanges on.
SHORT = (60, 100, 180, 300, 600)
SHORT_CASES = (
    ("coupled:none:none:0", -1.0),
    ("coupled:allgather:none:0", -1.0),
    ("coupled:scatter_reduce:none:0", -1.0),
    ("coupled:none:relative:0.5", -1.0),
    ("coupled:allgather:relative:0.5", -1.0),
    ("coupled:scatter_reduce:relative:0.5", -1.0),
    ("separated:allgather:none:0", -1.0),
    ("separated:scatter_reduce:relative:0.5", -1.0),
)
DIVERGING = ("sgda:none:none:0", "sgda:scatter_reduce:none:0")
SETTLING = ("extra_adam:scatter_reduce:none:0",)

# Absolute noise is averaged out slowly: its slope needs the whole 3,000 exchanges, and a σ that
# outweighs the starting point early. The spread of the slope over seeds is 0.04.
LONG = (100, 200, 400, 800, 1600, 3000)
LONG_CASES = (
    ("coupled:none:absolute:2", -0.5),
    ("coupled:allgather:absolute:2", -0.5),
    ("coupled:scatter_reduce:absolute:2", -0.5),
    ("separated:allgather:absolute:2", -0.5),
    ("separated:scatter_reduce:absolute:2", -0.5),
)
SEED = 1


def play(
    mpi_run: Runner, cases: list[str], checkpoints: tuple[int, ...]
) -> dict[str, dict[str, Any]]:
    finished = mpi_run(
        RANKS,
        "tests/parallel/bilinear.py",
        *cases,
        "--exchanges",
        checkpoints[-1],
        "--bits",
        BITS,
        "--seed",
        SEED,
        "--checkpoints",
        *checkpoints,
        timeout=400,
    )
    results = [json.loads(line) for line in finished.stdout.splitlines() if line.startswith("{")]
    assert [result["case"] for result in results] == cases, finished.stdout + finished.stderr
    for result in results:
        compression = result["case"].split(":")[1]
        assert result["same"], result["case"]
        assert result["exchanges"] == checkpoints[-1]
        assert result["topologies"] == ["raw" if compression == "none" else compression]
        assert result["quantized"] == (0 if compression == "none" else 40)
        assert result["average_error"] < 1e-4
    return {result["case"]: result for result in results}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cases", "others", "checkpoints"),
    [
        pytest.param(SHORT_CASES, DIVERGING + SETTLING, SHORT, id="noiseless-and-relative"),
        pytest.param(LONG_CASES, (), LONG, id="absolute"),
    ],
)
def test_qoda_reaches_the_rates_and_descent_ascent_diverges(
    mpi_run: Runner,
    cases: tuple[tuple[str, float], ...],
    others: tuple[str, ...],
    checkpoints: tuple[int, ...],
) -> None:
    print("seed", SEED)
    results = play(mpi_run, [case for case, _ in cases] + list(others), checkpoints)
    slopes = {case: slope(checkpoints, results[case]["residuals"]) for case, _ in cases}
    for case, found in slopes.items():
        print(f"{case:40s} slope {found:.3f}, residual {results[case]['residuals'][-1]:.2e}")
    for case, expected in cases:
        assert slopes[case] == pytest.approx(expected, abs=0.1), case
        assert results[case]["residuals"][-1] < 0.2 * results[case]["start"], case
    for case in others:
        growth = results[case]["last"] / results[case]["start"]
        assert growth > 5 if case in DIVERGING else growth < 0.3, case
