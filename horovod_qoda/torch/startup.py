"""``hvd.init()``, and one look whether the ranks it found are those that were started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import horovod.torch as hvd

from horovod_qoda._horovod import install_command
from horovod_qoda.logs import logger

_LAUNCHERS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "Open MPI's mpirun"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK", "MVAPICH2's mpirun"),
    ("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK", "jsrun"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "srun"),
    ("PMI_SIZE", "PMI_RANK", "a PMI launcher (MPICH, Intel MPI, Cray)"),
    ("HOROVOD_SIZE", "HOROVOD_RANK", "horovodrun"),
)
"""Variables with the number of processes and the own one. Slurm's is the step's: in a batch script
SLURM_NTASKS says how many an srun would start."""


def init(*args: Any, **kwargs: Any) -> None:
    """Horovod's ``init``; warns where it found one process and the launcher has started more.

    Each process would then train alone, as rank 0 of 1, and nothing else would say so.
    """
    hvd.init(*args, **kwargs)
    if not (args or kwargs) and hvd.size() == 1 and (problem := alone(os.environ)):
        logger().warning(problem)


def alone(environ: Mapping[str, str]) -> str:
    """What is wrong, and the command that repairs it, for a process that is rank 0 of 1.

    Empty where no launcher's variables say that there are more, and for all but its first process:
    one message is enough.
    """
    for size, rank, launcher in _LAUNCHERS:
        count = environ.get(size, "")
        if count.isdigit() and int(count) > 1:
            if environ.get(rank, "0") != "0":
                return ""
            return (
                f"hvd.size() is 1 in every process, but {launcher} started {count} ({size}="
                f"{count}): EACH OF THEM TRAINS ALONE. {_repair(launcher)}"
            )
    return ""


def _repair(launcher: str) -> str:
    rebuild = (
        "or build Horovod for the MPI whose mpicxx is on PATH (in a checkout of horovod_qoda: "
        f"make setup):\n    {install_command()}"
    )
    if launcher == "srun":
        return (
            "srun offers no interface that Horovod's MPI understands: try srun --mpi=pmix (srun "
            f"--mpi=list shows which there are), start with mpirun inside the allocation, {rebuild}"
        )
    if launcher == "horovodrun":
        return (
            "Horovod runs its ranks over Gloo there, which this package does not use: start with "
            f"horovodrun --mpi, {rebuild}"
        )
    return (
        "Horovod was built with another MPI than the launcher's: start with the mpirun of that MPI "
        f"(horovodrun --check-build and ldd of horovod/torch/mpi_lib_v2*.so name it), {rebuild}"
    )
