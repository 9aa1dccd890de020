#!/usr/bin/env bash
# Several hosts with Horovod's own launcher, which calls mpirun. Needs ssh without a password.
#
#     HOSTS=node1:4,node2:4 NP=8 launch/jobs/horovodrun.sh [--dry-run] python train.py
set -euo pipefail

HOSTS=${HOSTS:-localhost:2}                    # host:ranks,host:ranks,...
NP=${NP:-2}                                    # ranks in all
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}   # compute threads a rank
INTERFACES=${INTERFACES:-}                     # e.g. ib0; empty: Horovod looks for common ones

dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
if [ $# -eq 0 ]; then echo "usage: $0 [--dry-run] PROGRAM ARGS" >&2; exit 2; fi

# With Open MPI horovodrun forwards every variable that is set here (-x), and MPICH's and Intel's
# launchers forward all by themselves: exporting is enough.
for name in PATH LD_LIBRARY_PATH PYTHONPATH OMP_NUM_THREADS "${!HOROVOD_QODA_@}"; do
  if [ -n "${!name+set}" ]; then export "${name?}"; fi
done

# Its own default, "-bind-to none", has one dash, which Open MPI 5 refuses.
command=(horovodrun -np "$NP" -H "$HOSTS" --binding-args="--bind-to none --map-by slot")
# More ranks than cores:  --binding-args="--bind-to none --map-by slot:OVERSUBSCRIBE"
#                         --mpi-args="--mca mpi_yield_when_idle 1"
if [ -n "$INTERFACES" ]; then
  command+=(--network-interfaces "$INTERFACES")
fi

command+=("$@")
if [ -n "$dry_run" ]; then printf '%q ' "${command[@]}"; echo; exit; fi
exec "${command[@]}"
