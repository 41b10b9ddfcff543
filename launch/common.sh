# Sourced by the launch scripts: settings, --help, --dry-run, and `call`, which runs every command.
# shellcheck shell=bash

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DRY=no
ACTION=

refuse() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# Run a command, or print it exactly as it would run.
call() {
  if [[ $DRY == yes ]]; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}

# need NAME...: settings that must not be empty.
need() {
  local name
  for name in "$@"; do
    [[ -n ${!name:-} ]] || refuse "$name is empty: expected a value in $SETTINGS"
  done
}

# number NAME...: settings that must be whole numbers.
number() {
  local name
  for name in "$@"; do
    [[ ${!name:-} =~ ^[0-9]+$ ]] || refuse "$name is '${!name:-}': expected a whole number in $SETTINGS"
  done
}

# start USAGE ACTIONS ARGUMENTS...: sets ACTION and DRY, reads the settings.
start() {
  local usage=$1 actions=$2 word
  shift 2
  for word in "$@"; do
    case $word in
      -h | --help) echo "$usage" && exit 0 ;;
      --dry-run) DRY=yes ;;
      -*) refuse "unknown option $word: expected --dry-run or --help" ;;
      *)
        [[ -z $ACTION ]] || refuse "a second action $word: expected one of $actions"
        ACTION=$word
        ;;
    esac
  done
  [[ -n $ACTION && " $actions " == *" $ACTION "* ]] || refuse "action '$ACTION': expected one of $actions"
  SETTINGS=${LAUNCH_ENV:-$HERE/pod.env}
  [[ -r $SETTINGS ]] || refuse "no settings at $SETTINGS: expected a file like launch/pod.env"
  # shellcheck source=launch/pod.env
  source "$SETTINGS"
  need NAME TRAIN
  number RESTARTS
}
