#!/usr/bin/env bash
# Runs a command on every worker of a TPU pod slice, from a machine with gcloud:
#   ./scripts/tpu_pod.sh setup NAME ZONE [REPOSITORY_URL]    checkout and .venv on every worker, new or up to date
#   ./scripts/tpu_pod.sh NAME ZONE ARGUMENTS...              python -m rgbd_jax.main ARGUMENTS... on every worker
#   ./scripts/tpu_pod.sh NAME ZONE --restarts N ARGUMENTS... the same, up to N times more if a signal kills a process
#   ./scripts/tpu_pod.sh stop NAME ZONE                      makes the run save a checkpoint and end
# REPOSITORY_URL defaults to this checkout's remote "origin". The checkout on each worker is ~/rgbd_jax.
#
# --workdir must be in a bucket (gs://bucket/folder), or on a disk that all workers share, as --config.data.data_dir must:
# Filestore (NFS), or a bucket that gcsfuse mounts at the same path everywhere. Every worker writes its part of a
# checkpoint.
#
# Ctrl-C ends the connections but not the run, which continues in the background: use `stop`.
set -euo pipefail
preempted=75
signals=128 # exit statuses above are those of processes that a signal killed
disconnected=255 # ssh's own: the run may continue
directory=rgbd_jax

show_help() { sed -nE 's/^#   (.*)/\1/p' "${BASH_SOURCE[0]}"; }

usage() {
  show_help >&2
  exit 2
}

# on WORKERS NAME ZONE COMMAND: the shells of the workers expand COMMAND once.
on() { gcloud compute tpus tpu-vm ssh "$2" --zone "$3" --worker="$1" --command="$4"; }

setup() {
  local url
  url=${3:-$(git -C "$(dirname "${BASH_SOURCE[0]}")" remote get-url origin)}
  # Images of Ubuntu 22.04 have Python 3.10, which is too old.
  on all "$1" "$2" "set -eu
    python=python3
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || python=python3.11
    if ! \$python -c 'import ensurepip' 2>/dev/null; then
      sudo apt-get -qq update
      sudo apt-get -qq install --yes \$python-venv
    fi
    if [ -d $directory/.git ]; then
      git -C $directory pull --ff-only
    else
      git clone $(printf '%q' "$url") $directory
    fi
    cd $directory
    ./scripts/setup.sh tpu gcs"
}

# SIGTERM to one process makes all of them save. The oldest match is the run.
stop() {
  on 0 "$1" "$2" "pkill --signal TERM --oldest --full '^[.]venv/bin/python -m rgbd_jax.main' ||
    { echo 'error: no run on worker 0' >&2; exit 1; }"
}

run() {
  local name=$1 zone=$2 arguments status restart restarts=0
  shift 2
  if [ "${1:-}" = --restarts ]; then
    restarts=$2
    shift 2
  fi
  arguments=$(printf ' %q' "$@") # quoted for the shell of the worker
  for ((restart = 0; restart <= restarts; restart++)); do
    status=0
    on all "$name" "$zone" "cd $directory && exec .venv/bin/python -m rgbd_jax.main$arguments" || status=$?
    if [ "$status" -le "$signals" ] || [ "$status" -eq "$disconnected" ] || [ "$restart" -eq "$restarts" ]; then
      break
    fi
    echo "restart $((restart + 1)) of $restarts: a process was killed by signal $((status - signals))" >&2
  done
  if [ "$status" -eq "$preempted" ]; then
    echo "saved; run the same command again to resume" >&2
  fi
  exit "$status"
}

case ${1:-} in
  --help | -h) show_help ;;
  setup)
    [ $# -eq 3 ] || [ $# -eq 4 ] || usage
    setup "${@:2}"
    ;;
  stop)
    [ $# -eq 3 ] || usage
    stop "$2" "$3"
    ;;
  *)
    [ $# -ge 3 ] || usage
    run "$@"
    ;;
esac
