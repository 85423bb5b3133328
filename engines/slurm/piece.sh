#!/usr/bin/env bash
# One piece, as a task of an array; submit.sh submits it. What to ask of a node for it: a task needs one process, with as
# many processors as a batch is worth.
#SBATCH --job-name=activations
#SBATCH --cpus-per-task=1
# A lost node: Slurm starts the task again on another.
#SBATCH --requeue
# What a task says stays when it is started again.
#SBATCH --open-mode=append

"$ACTIVATIONS" "${@:2}" --out "$1" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
status=$?

# 128 + a signal: it was killed, by the memory's guard or by an operator. It goes on where it was. An error of its own (an
# unknown name, a line that is no text) has a smaller number and would come back.
if (( status > 128 && ${SLURM_RESTART_COUNT:-0} < RETRIES )); then
  echo "piece $SLURM_ARRAY_TASK_ID was killed by signal $((status - 128)); it is queued again" >&2
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
