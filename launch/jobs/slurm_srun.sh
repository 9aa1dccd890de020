#!/usr/bin/env bash
# Slurm, ranks started by srun. Needs an Open MPI built with PMIx and a Slurm with the PMIx plugin:
# `srun --mpi=list` names it; Intel MPI and MPICH want --mpi=pmi2.
#
#     sbatch launch/jobs/slurm_srun.sh python train.py
#     launch/jobs/slurm_srun.sh --dry-run python train.py
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

# ALL forwards everything exported here: PATH, LD_LIBRARY_PATH, PYTHONPATH, OMP_NUM_THREADS and
# HOROVOD_QODA_* among it.
for name in PATH LD_LIBRARY_PATH PYTHONPATH OMP_NUM_THREADS "${!HOROVOD_QODA_@}"; do
  if [ -n "${!name+set}" ]; then export "${name?}"; fi
done

command=()
if [ -n "$INTERFACES" ]; then
  # There is no mpirun whose flags could say it.
  command+=(env OMPI_MCA_btl_tcp_if_include="$INTERFACES")
fi
# --cpu-bind=none and --distribution=block are srun's --bind-to none and --map-by slot. From Slurm
# 22.05 on srun does not take --cpus-per-task from sbatch.
command+=(srun --mpi=pmix --export=ALL --ntasks="${SLURM_NTASKS:-8}"
  --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" --cpu-bind=none --distribution=block
  --kill-on-bad-exit=1)

command+=("$@")
if [ -n "$dry_run" ]; then printf '%q ' "${command[@]}"; echo; exit; fi
exec "${command[@]}"
