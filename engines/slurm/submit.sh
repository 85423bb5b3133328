#!/usr/bin/env bash
# Activations of a corpus on a Slurm cluster: an array of pieces, then a job that checks and joins what they wrote.
#
#   engines/slurm/submit.sh PIECES FOLDER ARGUMENTS...
#   engines/slurm/submit.sh 64 /shared/acts --model gpt2-xl --file /shared/texts.jsonl --names h.20,h.30
#
# ARGUMENTS are those of the program `activations`, but for --out and --shard. FOLDER, the model and the texts have to be
# where every node finds them. The same command again goes on with what is missing.
#
# Variables:
#   ACTIVATIONS     the program, where it is not on the PATH of the nodes
#   RETRIES         how often a task is started again whose program was killed (5)
#   ROUNDS          how often the array is submitted again while pieces are missing at its end (3)
#   SBATCH_...      sbatch's own: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, SBATCH_GPUS, SBATCH_MEM_PER_NODE
set -euo pipefail

if (( $# < 3 )) || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: $0 PIECES FOLDER ARGUMENTS... (PIECES is a number; ARGUMENTS are those of activations)" >&2
  exit 2
fi

# sbatch hands a copy of a script to the nodes: the jobs learn from a variable where this folder is.
export ENGINE ACTIVATIONS=${ACTIVATIONS:-activations} RETRIES=${RETRIES:-5} ROUNDS=${ROUNDS:-3}
ENGINE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

array=$(sbatch --parsable --array="0-$(($1 - 1))" "$ENGINE/piece.sh" "${@:2}")
# After the pieces, however they ended: the job that joins them knows best what is missing, and has it done.
merge=$(sbatch --parsable --dependency="afterany:$array" "$ENGINE/merge.sh" "$@")
echo "pieces: job $array, $1 tasks; merge: job $merge"
