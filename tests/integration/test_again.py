"""Forks after init, and Horovod shut down and initialised again: nothing hangs."""

import pytest


def test_children_may_be_forked(mpi_run):
    cases = ("with_loader_processes", "fork_and_exit")
    finished = mpi_run(2, "tests/integration/again.py", *cases, timeout=400)
    assert finished.stdout.count("child ended with 7") == 2
    assert finished.stdout.count("loader's processes did not disturb") == 2


def test_shutdown_and_init_where_mpi4py_keeps_mpi_alive(mpi_run):
    """Without mpi4py Horovod itself cannot do this: MPI starts once in a process."""
    pytest.importorskip("mpi4py")
    finished = mpi_run(2, "tests/integration/again.py", "mpi4py", "shutdown_and_init", timeout=400)
    assert finished.stdout.count("after shutdown: Horovod has not been initialized") == 2
    assert finished.stdout.count("initialised again with 2 ranks") == 2
