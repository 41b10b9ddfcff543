#!/usr/bin/env bash
# Train on GPUs under SLURM, a process for each; requeued until it has finished.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

USAGE="usage: launch/slurm.sh ACTION [--dry-run]

train   submit the run
state   print the queue's entry
tail    follow the log
stop    SIGTERM to the training: it saves, and is not requeued

Settings: launch/pod.env. Start it in the repository's folder, which all nodes see, with its .venv."

start "$USAGE" "train state tail stop" "$@"
number NODES GPUS HOURS GRACE

# The job's commands. Exit code 143 means stopped by SIGTERM, 2 bad input. `stop` leaves a file that prevents a requeue.
STOPPED="$NAME.stopped"
JOB="trap : TERM; srun --kill-on-bad-exit=1 .venv/bin/python -m fmboost_jax.train $TRAIN; status=\$?"
AGAIN="[ \$status -ne 0 ] && [ \$status -ne 2 ] && [ ! -e $STOPPED ] && [ \${SLURM_RESTART_COUNT:-0} -lt $RESTARTS ]"
JOB+="; if $AGAIN; then scontrol requeue \$SLURM_JOB_ID; fi; exit \$status"

case $ACTION in
  train)
    call rm -f "$STOPPED"
    call sbatch --job-name="$NAME" --nodes="$NODES" --ntasks-per-node="$GPUS" --gpus-per-node="$GPUS" \
      --time="$HOURS:00:00" --requeue --signal="TERM@$GRACE" --open-mode=append --output="$NAME.log" --wrap="$JOB"
    ;;
  state) call squeue --name="$NAME" --me ;;
  tail) call tail -n 50 -F "$NAME.log" ;;
  stop)
    call touch "$STOPPED"
    call scancel --name="$NAME" --me --signal=TERM
    ;;
esac
