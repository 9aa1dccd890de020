#!/usr/bin/env bash
# Apptainer or Singularity: the host's mpirun starts a container for each rank. The container's MPI
# must be of the host's family and major version, or be the host's itself (MPI_HOME).
#
#     IMAGE=train.sif HOSTS=node1:4,node2:4 NP=8 launch/jobs/apptainer.sh [--dry-run] python train.py
#
# In a batch job replace the line "command=(mpirun ..." by that of slurm_srun.sh, pbs.sh, ...
set -euo pipefail

IMAGE=${IMAGE:-horovod_qoda.sif}
APPTAINER=${APPTAINER:-apptainer}              # or: singularity
HOSTS=${HOSTS:-localhost:2}                    # host:slots,host:slots,...
NP=${NP:-2}                                    # ranks in all
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}   # compute threads a rank
INTERFACES=${INTERFACES:-}                     # e.g. ib0 or 10.1.0.0/16; empty: all are tried
MPI_HOME=${MPI_HOME:-}                         # e.g. /opt/openmpi, to use the host's in the container

dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
if [ $# -eq 0 ]; then echo "usage: $0 [--dry-run] PROGRAM ARGS" >&2; exit 2; fi

command=(mpirun -np "$NP" -H "$HOSTS" --bind-to none --map-by slot)
if [ -n "$INTERFACES" ]; then
  # Of the ranks' messages. The launcher's own: --mca oob_tcp_if_include in Open MPI 4,
  # --prtemca prte_if_include in Open MPI 5.
  command+=(--mca btl_tcp_if_include "$INTERFACES")
fi
# PATH and LD_LIBRARY_PATH, so that the hosts find Apptainer; it sets the container's own. Other
# variables go through it into the container.
for name in PATH LD_LIBRARY_PATH PYTHONPATH OMP_NUM_THREADS "${!HOROVOD_QODA_@}"; do
  if [ -n "${!name+set}" ]; then command+=(-x "$name"); fi
done

command+=("$APPTAINER" exec)                   # --nv for NVIDIA's GPUs, --rocm for AMD's
if [ -n "$MPI_HOME" ]; then
  command+=(--bind "$MPI_HOME" --env PREPEND_PATH="$MPI_HOME/bin"
    --env LD_LIBRARY_PATH="$MPI_HOME/lib")
fi
command+=("$IMAGE" "$@")
if [ -n "$dry_run" ]; then printf '%q ' "${command[@]}"; echo; exit; fi
exec "${command[@]}"
