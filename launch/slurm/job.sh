#!/usr/bin/env bash
# The job of the sbatch files: one task per node. A run that was asked to stop is queued again.
set -uo pipefail
config=${1:?"usage: sbatch launch/slurm/nodes.sbatch CONFIG [options of tdmvid train]"}
shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    case "$config $*" in
        *%a*) ;;
        *)  echo "all tasks of the array would train the same run: use %a, which stands for the task's number, e.g. --set seed=%a --out runs/seed_%a" >&2
            exit 2 ;;
    esac
    config=${config//%a/$SLURM_ARRAY_TASK_ID}
    set -- "${@//%a/$SLURM_ARRAY_TASK_ID}"
fi
export HEAD NODES=$SLURM_NNODES GPUS=${SLURM_GPUS_ON_NODE:-8} JOB=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0} PORT=$((20000 + SLURM_JOB_ID % 20000))
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if ! getent hosts "$HEAD" >/dev/null; then  # a node's name may not be resolvable
    address=$(scontrol --oneliner show node "$HEAD" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    HEAD=${address:-$HEAD}
fi

unset SLURM_GPUS_PER_NODE  # srun would ask for the 8 GPUs of the sbatch file, also if --gres=gpu:4 has replaced them
# srun does not inherit --cpus-per-task from the job (since Slurm 22.05), and the WaitTime of some clusters would kill the node that finishes exporting last.
again=(); [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && again=(--resume auto)  # a --resume DIR of the user was for the first start
srun --kill-on-bad-exit=0 --wait=0 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "$here/node.sh" --config "$config" --resume auto "$@" ${again[@]+"${again[@]}"}
status=$?
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}  # the last task of an array has the job number of the whole array
job=${job:-$SLURM_JOB_ID}
if [ $status -eq 75 ] || [ $status -eq 77 ]; then
    scontrol update JobId="$job" Comment=tdmvid:0
    scontrol requeue "$job"
elif [ $status -eq 76 ] || [ $status -eq 138 ]; then  # stopped before anything was saved (138: before node.sh started): retry a limited number of times
    stops=$(scontrol --oneliner show job "$job" | sed -n 's/.* Comment=tdmvid:\([0-9]*\).*/\1/p')
    if [ "${stops:-0}" -ge 3 ]; then
        echo "stopped $((stops + 1)) times in a row before anything new was saved (embeddings, a checkpoint, samples or scores of the evaluation): the signal is sent --signal=USR1@SECONDS before the end of --time; increase --time, or use fewer seconds" >&2
        exit 1
    fi
    scontrol update JobId="$job" Comment="tdmvid:$((${stops:-0} + 1))"
    scontrol requeue "$job"
fi
exit $status
