#!/usr/bin/env bash
# Train on a TPU VM slice: every host runs the same command, and jax finds the others.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

USAGE="usage: launch/tpu.sh ACTION [--dry-run]

create   queue for the slice
state    print the state of the queue's entry
install  install the code and its packages on all workers and mount the bucket
train    train on all workers, in the foreground; the log goes to train.log there too
tail     follow worker 0's log
stop     SIGTERM to the training on all workers
delete   release the slice
until    create, install and train; again after every preemption, until training has finished (or input is bad)

Settings: launch/pod.env."

start "$USAGE" "create state install train tail stop delete until" "$@"
need PROJECT ZONE ACCELERATOR RUNTIME REPOSITORY REVISION BUCKET
number POLL
[[ $SPOT == yes || $SPOT == no ]] || refuse "SPOT is '$SPOT': expected yes or no in $SETTINGS"
WHERE=(--project="$PROJECT" --zone="$ZONE")

queue() { call gcloud compute tpus queued-resources "$@" "${WHERE[@]}"; }
on() { call gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker="$1" --command="$2"; }

create() {
  local spot=()
  [[ $SPOT == no ]] || spot=(--spot)
  queue create "$NAME" --node-id="$NAME" --accelerator-type="$ACCELERATOR" --runtime-version="$RUNTIME" "${spot[@]}"
}

state() { queue describe "$NAME" --format='value(state.state)'; }

install() {
  local code
  printf -v code 'git clone %q fmboost_jax 2>/dev/null || git -C fmboost_jax fetch' "$REPOSITORY"
  printf -v code '%s; set -e; cd fmboost_jax; git checkout %q' "$code" "$REVISION"
  code+="; python3 -m pip install --user uv; python3 -m uv venv --allow-existing --python 3.11 .venv"
  code+="; python3 -m uv pip install --python .venv/bin/python -c constraints.txt -e '.[tpu]'"
  # No metadata of the bucket is cached: every host must see at once what another has written.
  code+="; mkdir -p bucket; mountpoint -q bucket || gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0"
  printf -v code '%s --metadata-cache-negative-ttl-secs=0 %q bucket' "$code" "$BUCKET"
  on all "$code"
}

train() {
  on all "cd fmboost_jax && set -o pipefail; .venv/bin/python -m fmboost_jax.train $TRAIN 2>&1 | tee train.log; \
status=\$?; echo exit status \$status >>train.log; exit \$status"
}

# The log's last line: exit status 0 for finished, 2 for bad input, 143 for stopped by SIGTERM, as a preemption does.
ended() { on 0 "tail -n 1 fmboost_jax/train.log"; }

stop() { on all "pkill -TERM -f '[f]mboost_jax.train'"; }

delete() { queue delete "$NAME" --force --quiet; }

# Wait until the slice is active; queue again after it was preempted.
await() {
  local now
  if [[ $DRY == yes ]]; then
    state
    create
    return
  fi
  while true; do
    if now=$(state 2>&1); then
      case $now in
        *ACTIVE) return ;;
        *FAILED | *SUSPENDED) delete ;;
      esac
    elif [[ $now == *NOT_FOUND* ]]; then
      create
    else
      echo "$now" >&2 # such as a network error: ask again
    fi
    sleep "$POLL"
  done
}

until_done() {
  local tries how
  for ((tries = 0; tries <= RESTARTS; tries++)); do
    await
    if [[ $DRY == yes ]]; then
      install && train && ended
      return
    fi
    how="no installation"
    if install; then
      train || true # the log has the exit status; this one is of any of the hosts
      how=$(ended) || how="no answer from worker 0"
    fi
    case $how in
      "exit status 0") return ;;
      "exit status 2") refuse "the training refused its input, see launch/tpu.sh tail" ;;
    esac
    echo "training ended early ($how), start $((tries + 1)) of $((RESTARTS + 1))" >&2
    sleep "$POLL"
  done
  echo "error: training did not finish in $((RESTARTS + 1)) starts" >&2
  return 1
}

[[ $ACTION != until ]] || ACTION=until_done
if [[ $ACTION == tail ]]; then
  on 0 "tail -n 50 -F fmboost_jax/train.log"
else
  "$ACTION"
fi
