#!/usr/bin/env bash
# Train on GKE: xpk turns the run into a JobSet, which restarts until it exits with 0 (finished) or 2 (bad input).
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

USAGE="usage: launch/gke.sh ACTION [--dry-run]

train   submit the run
state   print the JobSet
tail    follow the logs
stop    delete the run

Settings: launch/pod.env. xpk and kubectl must have access to the cluster."

start "$USAGE" "train state tail stop" "$@"
need PROJECT ZONE CLUSTER IMAGE ACCELERATOR
number SLICES GRACE
WHERE=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE")

case $ACTION in
  train)
    call xpk workload create --workload="$NAME" "${WHERE[@]}" --tpu-type="$ACCELERATOR" --num-slices="$SLICES" \
      --docker-image="$IMAGE" --max-restarts="$RESTARTS" --restart-on-exit-codes=1 \
      --termination-grace-period-seconds="$GRACE" --command="python -m fmboost_jax.train $TRAIN"
    ;;
  state) call kubectl get jobset "$NAME" ;;
  tail) call kubectl logs --follow --prefix --max-log-requests=1000 -l "jobset.sigs.k8s.io/jobset-name=$NAME" ;;
  stop) call xpk workload delete --workload="$NAME" "${WHERE[@]}" ;;
esac
