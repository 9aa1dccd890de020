#!/usr/bin/env bash
# Several hosts, mpirun of Open MPI 4. Needs ssh without a password, and the same paths everywhere.
#
#     HOSTS=node1:4,node2:4 NP=8 launch/jobs/openmpi4.sh [--dry-run] python train.py
set -euo pipefail

HOSTS=${HOSTS:-localhost:2}                    # host:slots,host:slots,...
NP=${NP:-2}                                    # ranks in all
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}   # compute threads a rank
INTERFACES=${INTERFACES:-}                     # e.g. ib0 or 10.1.0.0/16; empty: all are tried

dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
if [ $# -eq 0 ]; then echo "usage: $0 [--dry-run] PROGRAM ARGS" >&2; exit 2; fi

command=(mpirun -np "$NP" -H "$HOSTS" --bind-to none --map-by slot)
# TCP, as Horovod advises. On InfiniBand replace this line by:  command+=(--mca pml ucx)
command+=(--mca pml ob1 --mca btl ^openib)
# Over slow links often 1.5 times as fast (docs/hpc.md):
#                        command+=(--mca btl_tcp_eager_limit 8388608)
if [ -n "$INTERFACES" ]; then
  # Of the ranks' messages, and of the launcher's own.
  command+=(--mca btl_tcp_if_include "$INTERFACES" --mca oob_tcp_if_include "$INTERFACES")
fi
# More ranks than cores:  command+=(--oversubscribe --mca mpi_yield_when_idle 1)

for name in PATH LD_LIBRARY_PATH PYTHONPATH OMP_NUM_THREADS "${!HOROVOD_QODA_@}"; do
  if [ -n "${!name+set}" ]; then command+=(-x "$name"); fi
done

command+=("$@")
if [ -n "$dry_run" ]; then printf '%q ' "${command[@]}"; echo; exit; fi
exec "${command[@]}"
