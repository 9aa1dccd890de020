"""The loops of tests/parallel/loops.py on real ranks, one after the other in one job."""

LOOPS = [
    "alternating",
    "joint_forward",
    "two_backwards_two_steps",
    "penalty",
    "accumulation",
    "clipping_before",
    "unused_layers",
    "dtypes_and_strides",
    "nonfinite",
    "sparse_gradients",
    "two_optimizers_of_one_kind",
    "refusals",
    "sum_closure_scheduler_and_new_group",
    "forced_overlap_refuses_changes",
]


def test_loops(mpi_run):
    finished = mpi_run(2, "tests/parallel/loops.py", *LOOPS)
    passed = [line for line in finished.stdout.splitlines() if "passed" in line]
    for loop in LOOPS:
        assert sum(line.endswith(f" passed {loop}") for line in passed) == 2, loop


def test_process_sets(mpi_run):
    finished = mpi_run(
        2,
        "tests/parallel/loops.py",
        "optimizers_of_different_process_sets",
        env={"HOROVOD_DYNAMIC_PROCESS_SETS": "1"},
    )
    assert finished.stdout.count("passed optimizers_of_different_process_sets") == 2


def test_nonfinite_on_three_ranks(mpi_run):
    finished = mpi_run(3, "tests/parallel/loops.py", "nonfinite")
    assert finished.stdout.count("passed nonfinite") == 3
