#!/usr/bin/env bash
# One node of a run: starts its ranks, hands them the signals of the cluster, and exits with 75
# if they saved their state because they were asked to stop, or had none to save.
#   HEAD=host NODES=2 GPUS=8 JOB=run1 launch/slurm/node.sh --config NAME --resume auto
set -uo pipefail
HEAD=${HEAD:-127.0.0.1} PORT=${PORT:-29500} NODES=${NODES:-1} GPUS=${GPUS:-8} JOB=${JOB:-tdmvid} PYTHON=${PYTHON:-python}

TDMVID_STOPPED=$(mktemp -u) told=0
threads=$((${SLURM_CPUS_PER_TASK:-$GPUS} / GPUS))  # torchrun gives each rank one: little for real clips and an offloaded optimiser
export TDMVID_STOPPED OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
"$PYTHON" -m torch.distributed.run \
    --nnodes "$NODES" --nproc_per_node "$GPUS" \
    --rdzv_backend c10d --rdzv_endpoint "$HEAD:$PORT" --rdzv_id "$JOB" \
    -m tdmvid train "$@" &
launcher=$!
trap 'told=1; kill -USR1 $(cat /proc/$launcher/task/*/children)' USR1 TERM  # the ranks stop at the end of their iteration

wait $launcher
status=$?
while kill -0 $launcher 2>/dev/null; do  # a signal ends `wait` early
    wait $launcher
    status=$?
done
if [ -e "$TDMVID_STOPPED" ] || { [ $told -eq 1 ] && [ $status -ne 0 ]; }; then  # before the first iteration and behind the last a signal ends the ranks
    rm -f "$TDMVID_STOPPED"
    exit 75
fi
exit $status
