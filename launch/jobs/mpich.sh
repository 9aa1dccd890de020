#!/usr/bin/env bash
# Several hosts, MPICH (Hydra). Horovod must have been built with it: `horovod-qoda doctor`.
#
#     HOSTS=node1,node2 PER_HOST=4 launch/jobs/mpich.sh [--dry-run] python train.py
set -euo pipefail

HOSTS=${HOSTS:-localhost}                      # host,host,...
PER_HOST=${PER_HOST:-2}                        # ranks on each
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}   # compute threads a rank
INTERFACES=${INTERFACES:-}                     # one, e.g. ib0; empty: that of the host's name

dry_run=
if [ "${1:-}" = --dry-run ]; then dry_run=1; shift; fi
if [ $# -eq 0 ]; then echo "usage: $0 [--dry-run] PROGRAM ARGS" >&2; exit 2; fi

commas=${HOSTS//[^,]/}
np=$(((${#commas} + 1) * PER_HOST))

# Hydra has no slots: -ppn fills hosts in order, which is what --map-by slot does elsewhere.
command=(mpiexec -n "$np" -ppn "$PER_HOST" -hosts "$HOSTS" -bind-to none)
if [ -n "$INTERFACES" ]; then
  # Of the launcher; of the ranks' messages with libfabric's TCP and with UCX.
  command+=(-iface "$INTERFACES" -genv FI_TCP_IFACE "$INTERFACES")
  command+=(-genv UCX_NET_DEVICES "$INTERFACES")
fi

names=
for name in PATH LD_LIBRARY_PATH PYTHONPATH OMP_NUM_THREADS "${!HOROVOD_QODA_@}"; do
  if [ -n "${!name+set}" ]; then names+=,$name; fi
done
command+=(-genvlist "${names#,}")

command+=("$@")
if [ -n "$dry_run" ]; then printf '%q ' "${command[@]}"; echo; exit; fi
exec "${command[@]}"
