#!/usr/bin/env bash
# One machine, Open MPI 4 or 5.
#
#     NP=4 launch/jobs/one_machine.sh [--dry-run] python train.py --epochs 3
set -euo pipefail

NP=${NP:-2}                                    # ranks
cores=$(env -u OMP_NUM_THREADS nproc)
# Compute threads a rank: more than cores in all make every rank slower.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > NP ? cores / NP : 1))}

dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
if [ $# -eq 0 ]; then echo "usage: $0 [--dry-run] PROGRAM ARGS" >&2; exit 2; fi

# Unbound: each rank also has Horovod's thread and the codec's. Open MPI counts physical cores as
# slots; OVERSUBSCRIBE lets hardware threads count too.
command=(mpirun -np "$NP" --bind-to none --map-by slot:OVERSUBSCRIBE)
if [ "$NP" -gt "$cores" ]; then
  # Waiting ranks spin, and would take the core from the rank that they wait for.
  command+=(--mca mpi_yield_when_idle 1)
fi
# Behind a firewall or a VPN that Open MPI trips over:  command+=(--mca btl_tcp_if_include lo)

for name in PATH LD_LIBRARY_PATH PYTHONPATH OMP_NUM_THREADS "${!HOROVOD_QODA_@}"; do
  if [ -n "${!name+set}" ]; then command+=(-x "$name"); fi
done

command+=("$@")
if [ -n "$dry_run" ]; then printf '%q ' "${command[@]}"; echo; exit; fi
exec "${command[@]}"
