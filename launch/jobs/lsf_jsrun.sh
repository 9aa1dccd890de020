#!/usr/bin/env bash
# LSF with IBM's Job Step Manager (Spectrum MPI): ranks started by jsrun, one resource set each.
#
#     bsub -nnodes 2 -W 60 -J horovod_qoda "launch/jobs/lsf_jsrun.sh python train.py"
#     launch/jobs/lsf_jsrun.sh --dry-run python train.py
set -euo pipefail

NP=${NP:-8}                                    # ranks in all
PER_HOST=${PER_HOST:-4}                        # ranks on each host
CORES=${CORES:-8}                              # physical cores of each rank
GPUS=${GPUS:-0}                                # of each rank
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$CORES}
INTERFACES=${INTERFACES:-}                     # e.g. ib0; empty: Spectrum MPI's own choice

dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
if [ $# -eq 0 ]; then echo "usage: $0 [--dry-run] PROGRAM ARGS" >&2; exit 2; fi

# "packed" fills hosts in order, as --map-by slot does elsewhere.
command=(jsrun --nrs "$NP" --rs_per_host "$PER_HOST" --tasks_per_rs 1 --cpu_per_rs "$CORES"
  --gpu_per_rs "$GPUS" --launch_distribution packed --bind none)
if [ -n "$INTERFACES" ]; then
  command+=(--smpiargs "-tcp -mca btl_tcp_if_include $INTERFACES")
fi

for name in PATH LD_LIBRARY_PATH PYTHONPATH OMP_NUM_THREADS "${!HOROVOD_QODA_@}"; do
  if [ -n "${!name+set}" ]; then command+=(--env "$name=${!name}"); fi
done

command+=("$@")
if [ -n "$dry_run" ]; then printf '%q ' "${command[@]}"; echo; exit; fi
exec "${command[@]}"
