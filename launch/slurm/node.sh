#!/usr/bin/env bash
# One node of a run: starts its ranks, hands them the signals of the cluster, and exits with 75
# if they saved their state because they were asked to stop.
#   HEAD=host NODES=2 GPUS=8 JOB=run1 launch/slurm/node.sh --config configs/...json --resume auto
set -uo pipefail
HEAD=${HEAD:-127.0.0.1} PORT=${PORT:-29500} NODES=${NODES:-1} GPUS=${GPUS:-8} JOB=${JOB:-tdmvid} PYTHON=${PYTHON:-python}

TDMVID_STOPPED=$(mktemp -u)
export TDMVID_STOPPED
"$PYTHON" -m torch.distributed.run \
    --nnodes "$NODES" --nproc_per_node "$GPUS" \
    --rdzv_backend c10d --rdzv_endpoint "$HEAD:$PORT" --rdzv_id "$JOB" \
    launch/train.py "$@" &
launcher=$!
trap 'kill -USR1 $(cat /proc/$launcher/task/*/children)' USR1 TERM  # the ranks stop at the end of their iteration

wait $launcher
status=$?
while kill -0 $launcher 2>/dev/null; do  # a signal ends `wait` early
    wait $launcher
    status=$?
done
if [ -e "$TDMVID_STOPPED" ]; then
    rm -f "$TDMVID_STOPPED"
    exit 75
fi
exit $status
