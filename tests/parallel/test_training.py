"""The cases of tests/parallel/training.py on real ranks, many in one job: starts are expensive."""

import os
import shutil

import pytest

CASES = [
    "amp",
    "amp_plain",
    "amp_without_gradients_on_a_rank",
    "amp_two_players",
    "amp_equals_float32",
    "clipping_between",
    "compiled",
    "channels_last",
    "checkpointing",
    "bfloat16_model",
    "frozen_layers",
    "several_backwards",
    "adasum",
    "predivide_factor",
    "three_optimizers",
    "a_new_optimizer_while_the_old_one_lives",
    "compression_changes",
    "compression_changes_differently",
    "load_on_rank_0_after_steps",
    "load_everywhere_then_broadcast",
    "accumulation_without_communication",
    "profiled",
    # Last: they leave collectives behind that never end.
    "forgotten_with_allgather",
    "forgotten_with_scatter_reduce",
    "forgotten_while_warming_up",
    "interrupted",
]


@pytest.mark.slow
def test_cases(mpi_run):
    finished = mpi_run(2, "tests/parallel/training.py", *CASES, timeout=600)
    passed = finished.stdout.splitlines()
    for case in CASES:
        assert sum(line.endswith(f" passed {case}") for line in passed) == 2, case
    assert finished.stderr.count("op=Adasum combines whole gradients") == 1


@pytest.mark.slow
def test_cases_on_three_ranks(mpi_run):
    cases = ["amp", "amp_plain", "load_on_rank_0_after_steps", "three_optimizers"]
    finished = mpi_run(3, "tests/parallel/training.py", *cases, timeout=600)
    for case in cases:
        assert finished.stdout.count(f" passed {case}\n") == 3, case


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "g++")), reason="inductor needs a C++ compiler"
)
def test_compiled_by_inductor(mpi_run, tmp_path):
    env = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    case = "compiled_by_inductor"
    finished = mpi_run(2, "tests/parallel/training.py", case, timeout=600, env=env)
    assert finished.stdout.count(f" passed {case}\n") == 2
    assert list(tmp_path.rglob("*.so")), "no machine code was made"
