#!/usr/bin/env bash
# Checks and joins what the pieces wrote; submit.sh submits it to run after them.
#SBATCH --job-name=activations-merge
#SBATCH --requeue
#SBATCH --open-mode=append

"$ACTIVATIONS" merge "$2"
status=$?

# Something is missing: a task whose script was killed, whose time was over, or that was killed too often. Pieces that are
# done find that in the folder and end at once, so the whole array is submitted again.
if (( status != 0 && ROUNDS > 0 )); then
  ROUNDS=$((ROUNDS - 1)) "$ENGINE/submit.sh" "$@"
fi
exit "$status"
