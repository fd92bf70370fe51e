#!/usr/bin/env bash
# One node of a run: starts its ranks, hands them the signals of the cluster, and exits with 75
# if they saved their state because they were asked to stop, with 76 if they had none to save.
#   HEAD=host NODES=2 GPUS=8 JOB=run1 launch/slurm/node.sh --config NAME --resume auto
set -uo pipefail
told=0
trap told=1 USR1 TERM  # a signal may come before there is a launcher
HEAD=${HEAD:-127.0.0.1} PORT=${PORT:-29500} NODES=${NODES:-1} GPUS=${GPUS:-8} JOB=${JOB:-tdmvid} PYTHON=${PYTHON:-python}
if [ "$NODES" -eq 1 ]; then  # one node needs no name that the network knows, and any free port will do
    rendezvous=(--rdzv_endpoint 127.0.0.1:0 --local_addr 127.0.0.1)
else
    rendezvous=(--rdzv_endpoint "$HEAD:$PORT")
fi

TDMVID_STOPPED=$(mktemp -u) launcher= reached=
threads=$((${SLURM_CPUS_PER_TASK:-$GPUS} / GPUS))  # torchrun gives each rank one: little for real clips and an offloaded optimiser
export TDMVID_STOPPED OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}

pass_on() {  # the ranks stop at the end of their iteration; a launcher without ranks has nothing to save
    told=1
    local rank ranks
    ranks=$(cat "/proc/$launcher/task/"*/children 2>/dev/null)
    for rank in $ranks; do
        case "$reached " in *" $rank "*) continue ;; esac
        kill -USR1 "$rank" 2>/dev/null
        reached+=" $rank"
    done
    if [ -z "$ranks" ] && [ -n "$launcher" ]; then
        kill -TERM "$launcher" 2>/dev/null
    fi
}
trap pass_on USR1 TERM

# SLURM signals every process of a node: the launcher has to outlive the USR1 that its ranks wait for.
"$PYTHON" -c 'import runpy, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: None)
try:
    runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
except Exception as error:  # which rank failed, and how; not where torchrun stood
    sys.exit(str(error))' \
    --nnodes "$NODES" --nproc_per_node "$GPUS" \
    --rdzv_backend c10d "${rendezvous[@]}" --rdzv_id "$JOB" \
    -m tdmvid train "$@" &
launcher=$!
[ $told -eq 1 ] && pass_on

wait $launcher
status=$?
while kill -0 $launcher 2>/dev/null; do  # a signal ends `wait` early
    sleep 1
    pass_on  # to ranks that came behind it, if it met a helper of the launcher only
    wait $launcher
    status=$?
done
if [ -e "$TDMVID_STOPPED" ]; then
    rm -f "$TDMVID_STOPPED"
    exit 75
elif [ $told -eq 1 ] && [ $status -ne 0 ]; then  # before the first iteration and behind the last a signal ends the ranks
    exit 76
fi
exit $status
