#!/usr/bin/env bash
# Run one node: start its ranks and forward the cluster's signals to them. The exit status is 75 if they saved their state and stopped
# on request. If a signal killed them, it is 77 if they had saved anything since their start, from which the next job goes on, else 76.
# Of several nodes, srun returns the highest status.
#   HEAD=host NODES=2 GPUS=8 JOB=run1 launch/slurm/node.sh --config NAME --resume auto
set -uo pipefail
told=0
trap told=1 USR1 TERM  # a signal may arrive before the launcher runs
HEAD=${HEAD:-127.0.0.1} PORT=${PORT:-29500} NODES=${NODES:-1} GPUS=${GPUS:-8} JOB=${JOB:-tdmvid} PYTHON=${PYTHON:-python}
if [ "$NODES" -eq 1 ]; then  # one node needs no resolvable name, and any free port works
    rendezvous=(--rdzv_endpoint 127.0.0.1:0 --local_addr 127.0.0.1)
else
    rendezvous=(--rdzv_endpoint "$HEAD:$PORT")
    if [ -n "${SLURMD_NODENAME:-}" ] && ! getent hosts "$SLURMD_NODENAME" >/dev/null; then  # the others could not find this node by its name
        address=$(scontrol --oneliner show node "$SLURMD_NODENAME" 2>/dev/null | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
        rendezvous+=(${address:+--local_addr "$address"})
    fi
fi

marker=$(mktemp -u) launcher= reached=  # with two substitutions in a line, bash can lose a signal between them
TDMVID_STOPPED=$marker.stopped TDMVID_SAVED=$marker.saved
threads=$((${SLURM_CPUS_PER_TASK:-$GPUS} / GPUS))  # torchrun's default is one thread per rank, too few for real clips and an offloaded optimizer
export PET_SIGNALS_TO_HANDLE=SIGINT,SIGHUP,SIGQUIT  # without SIGTERM: 30 s after it torchrun would kill the ranks, and many iterations are longer
export TDMVID_STOPPED TDMVID_SAVED OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}

pass_on() {  # ranks stop at the end of their iteration; without ranks there is nothing to save
    told=1
    local rank ranks
    ranks=$(cat "/proc/$launcher/task/"*/children 2>/dev/null)
    for rank in $ranks; do
        case "$reached " in *" $rank "*) continue ;; esac
        kill -USR1 "$rank" 2>/dev/null
        reached+=" $rank"
    done
    if [ -z "$ranks" ] && [ -n "$launcher" ]; then
        kill -HUP "$launcher" 2>/dev/null
    fi
}
trap pass_on USR1 TERM

# SLURM signals every process of a node. The launcher must survive the USR1 or TERM that is meant for its ranks.
"$PYTHON" -c 'import runpy, signal, sys
for told in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(told, lambda *_: None)
try:
    runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
except Exception as error:  # print which rank failed and how, without a traceback of torchrun
    sys.exit(str(error))' \
    --nnodes "$NODES" --nproc_per_node "$GPUS" \
    --rdzv_backend c10d "${rendezvous[@]}" --rdzv_id "$JOB" \
    -m tdmvid train "$@" &
launcher=$!
[ $told -eq 1 ] && pass_on

wait $launcher
status=$?
while kill -0 $launcher 2>/dev/null; do  # a signal interrupts `wait`
    sleep 1
    pass_on  # also to ranks that started after the signal
    wait $launcher
    status=$?
done
if [ -e "$TDMVID_STOPPED" ]; then
    status=75
elif [ $told -eq 1 ] && [ $status -ne 0 ]; then  # before the first and after the last iteration, a signal kills the ranks
    status=76
    [ -e "$TDMVID_SAVED" ] && status=77
fi
rm -f "$TDMVID_STOPPED" "$TDMVID_SAVED"
exit $status
