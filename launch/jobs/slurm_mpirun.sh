#!/usr/bin/env bash
# Slurm, ranks started by Open MPI's mpirun inside the allocation, whose hosts it finds by itself.
#
#     sbatch launch/jobs/slurm_mpirun.sh python train.py
#     launch/jobs/slurm_mpirun.sh --dry-run python train.py
#SBATCH --job-name=horovod_qoda
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=01:00:00
#SBATCH --export=ALL
set -euo pipefail

# module load gcc openmpi python               # what the environment was made with
# source /path/to/.venv/bin/activate
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-8}}
INTERFACES=${INTERFACES:-}                     # e.g. ib0 or 10.1.0.0/16; empty: all are tried

dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
if [ $# -eq 0 ]; then echo "usage: sbatch $0 [--dry-run] PROGRAM ARGS" >&2; exit 2; fi

command=(mpirun -np "${SLURM_NTASKS:-8}" --bind-to none --map-by slot)
if [ -n "$INTERFACES" ]; then
  # Of the ranks' messages. The launcher's own: --mca oob_tcp_if_include in Open MPI 4,
  # --prtemca prte_if_include in Open MPI 5.
  command+=(--mca btl_tcp_if_include "$INTERFACES")
fi

for name in PATH LD_LIBRARY_PATH PYTHONPATH OMP_NUM_THREADS "${!HOROVOD_QODA_@}"; do
  if [ -n "${!name+set}" ]; then command+=(-x "$name"); fi
done

command+=("$@")
if [ -n "$dry_run" ]; then printf '%q ' "${command[@]}"; echo; exit; fi
exec "${command[@]}"
