#!/usr/bin/env bash
# PBS (PBS Pro, OpenPBS), ranks started by Open MPI's mpirun on the hosts of the allocation.
#
#     qsub -v PROGRAM="python train.py --epochs 3" launch/jobs/pbs.sh
#     launch/jobs/pbs.sh --dry-run python train.py
#PBS -N horovod_qoda
#PBS -l select=2:ncpus=32:mpiprocs=4:ompthreads=8
#PBS -l walltime=01:00:00
#PBS -j oe
set -euo pipefail

# module load gcc openmpi python               # what the environment was made with
# source /path/to/.venv/bin/activate
cd "${PBS_O_WORKDIR:-.}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}   # PBS sets it: to ompthreads, or else to ncpus
INTERFACES=${INTERFACES:-}                     # e.g. ib0 or 10.1.0.0/16; empty: all are tried

dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
# qsub passes no arguments to a script: there the program comes in a variable, split at spaces.
if [ $# -eq 0 ]; then read -r -a words <<< "${PROGRAM:-}"; set -- ${words[@]+"${words[@]}"}; fi
if [ $# -eq 0 ]; then echo "usage: qsub -v PROGRAM='PROGRAM ARGS' $0" >&2; exit 2; fi

# The file names each host once for every one of its mpiprocs: those are its slots.
nodefile=${PBS_NODEFILE:-PBS_NODEFILE}         # outside of a job, a stand-in for --dry-run
np=8
if [ -r "$nodefile" ]; then np=$(wc -l < "$nodefile"); fi

command=(mpirun -np "$np" --hostfile "$nodefile" --bind-to none --map-by slot)
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
