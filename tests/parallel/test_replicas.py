"""Replicas stay the same to the bit in every topology, with and without overlap."""

import json

import pytest


def report(finished):
    lines = [x for x in finished.stdout.splitlines() if x.startswith("{")]
    assert len(lines) == 1, finished.stdout + finished.stderr
    return json.loads(lines[0])


@pytest.mark.parametrize("np", [2, 3, 4])
@pytest.mark.parametrize("topology", ["allgather", "scatter_reduce"])
@pytest.mark.parametrize("overlap", ["on", "off"])
def test_replicas_are_identical_after_200_steps(mpi_run, np, topology, overlap):
    got = report(
        mpi_run(
            np,
            "tests/parallel/train.py",
            "--topology",
            topology,
            "--overlap",
            overlap,
            "--fusion-mb",
            "0.125",
            "--optimizer",
            "qoda" if np == 3 else "adam",
        )
    )
    assert got["same"] and got["exchanges"] == 200
    assert got["overlap"] == (overlap == "on")
    assert got["topology"] == topology
    assert got["last"] < 0.8 * got["first"]
    assert got["wire"] < got["raw"] / 2


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
