"""Ranks with and without a device share a job: the same means and sums, to the bit."""

import json
from importlib.util import find_spec

import pytest

# Not imported here: whether it interprets is decided when it is.
pytestmark = pytest.mark.skipif(
    find_spec("triton") is None,
    reason="Triton is not installed: pip install horovod-qoda[gpu]",
)

CASES = ["allgather", "scatter_reduce", "bfloat16_levels", "warming_up"]


def check(finished, cases):
    passed = finished.stdout.splitlines()
    for case in cases:
        assert all(f"rank {rank} passed {case}" in passed for rank in range(2)), finished.stderr


@pytest.mark.slow
def test_interpreted_kernels_beside_the_native_codec(mpi_run):
    finished = mpi_run(2, "tests/parallel/devices.py", "--interpreter", *CASES, timeout=1500)
    check(finished, CASES)
    assert "gradients on cpu are coded there by Triton kernels" in finished.stderr
    assert "although HOROVOD_QODA_PAYLOADS=device" in finished.stderr
    assert "rank 1 codes other buffers on devices than rank 0" in finished.stderr


@pytest.mark.slow
def test_payloads_travel_as_tensors(mpi_run):
    """Tensors in the CPU's memory stand for those of a device: Horovod moves them as they are."""
    cases = ["allgather", "scatter_reduce", "warming_up"]
    finished = mpi_run(2, "tests/parallel/devices.py", "--interpreter=all", *cases, timeout=1500)
    check(finished, cases)
    assert "payloads travel as tensors on their devices" in finished.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("ranks", ["--cuda", "--cuda=all"])
def test_ranks_on_a_device(mpi_run, ranks):
    cases = [*CASES, "wide"]
    finished = mpi_run(2, "tests/parallel/devices.py", ranks, *cases, timeout=900)
    check(finished, cases)
    assert "gradients on cuda:0 are coded there by Triton kernels" in finished.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("topology", ["allgather", "scatter_reduce"])
def test_a_wgan_trains_on_one_device_shared_by_two_ranks(mpi_run, tmp_path, topology):
    words = ["--device", "cuda", "--data", "digits", "--steps", 100, "--eval-every", 100]
    words += ["--topology", topology, "--runs", tmp_path, "--name", "gpu", "--batch", 16]
    finished = mpi_run(2, "examples/wgan.py", *words, timeout=900)
    assert "gradients on cuda:0 are coded there by Triton kernels" in finished.stderr
    lines = [json.loads(x) for x in (tmp_path / "gpu" / "metrics.jsonl").read_text().splitlines()]
    distances = [x["distance"] for x in lines if "distance" in x]
    assert distances[-1] < distances[0]
    (summary,) = [x for x in lines if x.get("event") == "summary"]
    assert summary["ratio"] > 4
