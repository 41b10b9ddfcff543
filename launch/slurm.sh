#!/usr/bin/env bash
# Train on one node's GPUs under SLURM; put back into the queue after a preemption.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

USAGE="usage: launch/slurm.sh ACTION [--dry-run]

train   submit the run
state   print the queue's entry
tail    follow the log
stop    SIGTERM to the training

Settings: launch/pod.env. Started in the repository's folder, which the node sees, with its .venv."

start "$USAGE" "train state tail stop" "$@"
number GPUS HOURS

case $ACTION in
  train)
    call sbatch --job-name="$NAME" --nodes=1 --ntasks=1 --gpus-per-node="$GPUS" \
      --time="$HOURS:00:00" --requeue --signal=TERM@120 --open-mode=append --output="$NAME.log" \
      --wrap="srun .venv/bin/python -m fmboost_jax.train $TRAIN"
    ;;
  state) call squeue --name="$NAME" --me ;;
  tail) call tail -n 50 -F "$NAME.log" ;;
  stop) call scancel --name="$NAME" --me --signal=TERM ;;
esac
