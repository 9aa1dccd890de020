"""Replicas stay the same to the bit in every topology, with and without overlap."""

import json

import pytest


def reports(finished):
    return [json.loads(x) for x in finished.stdout.splitlines() if x.startswith("{")]


def report(finished):
    (got,) = reports(finished)
    return got


@pytest.mark.parametrize("np", [2, 3, 4])
def test_replicas_are_identical_after_200_steps(mpi_run, np):
    runs = [(t, o) for t in ("allgather", "scatter_reduce") for o in ("on", "off")]
    words: list[str] = []
    for topology, overlap in runs:
        words += ["--next"] if words else []
        words += ["--topology", topology, "--overlap", overlap, "--fusion-mb", "0.125"]
        words += ["--optimizer", "qoda" if np == 3 else "adam"]
    got = reports(mpi_run(np, "tests/parallel/train.py", *words, timeout=300))
    assert [(x["topology"], "on" if x["overlap"] else "off") for x in got] == runs
    for x in got:
        assert x["same"] and x["exchanges"] == 200
        assert np == 3 or x["last"] < 0.8 * x["first"]
        assert x["wire"] < x["raw"] / 2


@pytest.mark.slow
def test_replicas_are_identical_after_1000_steps(mpi_run):
    """Past the update at exchange 1,000, with what adapts most: levels, and bits of each layer."""
    words = ["--steps", "1000", "--topology", "scatter_reduce"]
    adapting = ["--quantizer", "adaptive", "--allocation", "lgreco", "--optimizer", "qoda"]
    got = reports(mpi_run(3, "tests/parallel/train.py", *words, "--next", *words, *adapting))
    assert [(x["same"], x["exchanges"]) for x in got] == [(True, 1000)] * 2
    assert all(x["wire"] < x["raw"] / 2 for x in got)


def test_auto_turns_overlap_on_and_says_so(mpi_run):
    finished = mpi_run(2, "tests/parallel/train.py", "--steps", "6")
    assert report(finished)["overlap"]
    assert finished.stderr.count("gradients are sent during backward") == 1
    assert "3 of 6 layers" in finished.stderr or "2 of 6 layers" in finished.stderr


@pytest.mark.parametrize("corrupt", [0, 2])
def test_a_corrupted_replica_is_caught(mpi_run, corrupt):
    finished = mpi_run(
        3,
        "tests/parallel/train.py",
        "--steps",
        "60",
        "--check",
        "10",
        "--corrupt",
        corrupt,
        check=False,
    )
    assert finished.returncode != 0
    assert "parameters differ between ranks in layer '2.weight'" in finished.stderr
    assert f"on ranks [{corrupt}]" in finished.stderr


def test_without_a_check_the_corruption_shows_in_the_hashes(mpi_run):
    got = report(mpi_run(2, "tests/parallel/train.py", "--steps", "20", "--corrupt", "1"))
    assert not got["same"]


@pytest.mark.parametrize("compression", ["none", "fp16"])
def test_stock_compressions_go_by_stock_horovod_and_say_so(mpi_run, compression):
    finished = mpi_run(
        2,
        "tests/parallel/train.py",
        "--steps",
        "20",
        "--compression",
        compression,
        "--optimizer",
        "qoda",
    )
    got = report(finished)
    assert got["same"] and got["topology"] == "raw"
    assert got["wire"] == got["raw"] // (2 if compression == "fp16" else 1)
    assert "not layerwise" in finished.stderr


def test_one_rank_alone_still_quantises(mpi_run):
    got = report(mpi_run(1, "tests/parallel/train.py", "--steps", "30"))
    assert got["topology"] == "allgather" and got["wire"] < got["raw"] / 2
