"""Sets that are named at hvd.init(); those made later are in test_loops.py."""


def test_a_set_named_at_init_trains_by_itself(mpi_run):
    finished = mpi_run(3, "tests/parallel/process_sets.py")
    assert sorted(finished.stdout.split("\n"))[1:] == [f"rank {r} passed" for r in range(3)]
