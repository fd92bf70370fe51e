#!/usr/bin/env bash
# The job of the sbatch files: one task a node; a run that was asked to stop is queued again.
set -uo pipefail
config=${1:?"usage: sbatch launch/slurm/nodes.sbatch CONFIG [options of tdmvid train]"}
shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    case "$config $*" in
        *%a*) ;;
        *)  echo "the tasks of an array would train the same run: %a in the options becomes the task's number, e.g. --set seed=%a --out runs/seed_%a" >&2
            exit 2 ;;
    esac
    config=${config//%a/$SLURM_ARRAY_TASK_ID}
    set -- "${@//%a/$SLURM_ARRAY_TASK_ID}"
fi
export HEAD NODES=$SLURM_NNODES GPUS=${SLURM_GPUS_ON_NODE:-8} JOB=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0} PORT=$((20000 + SLURM_JOB_ID % 20000))
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if ! getent hosts "$HEAD" >/dev/null; then  # a node's name need not be one that the network knows
    address=$(scontrol --oneliner show node "$HEAD" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
    HEAD=${address:-$HEAD}
fi

# srun takes the job's CPUs for a task from no option of the job (Slurm 22.05), and WaitTime of some clusters would kill the node that exports last.
srun --kill-on-bad-exit=0 --wait=0 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "$here/node.sh" --config "$config" --resume auto "$@"
status=$?
if [ $status -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
