#!/usr/bin/env bash
# Trains and evaluates small networks on rendered hand motions; finished runs are not trained again.
#   ./scripts/demo.sh           RGB
#   ./scripts/demo.sh depth     depth
#   ./scripts/demo.sh fusion    RGB, depth, then the fusion of both
# Further arguments go to rgbd_jax.main.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
modality=rgb
if [[ $# -gt 0 && $1 != -* ]]; then
  modality=$1
  shift
fi
./scripts/setup.sh

run() { .venv/bin/python -m rgbd_jax.main --config "configs/demo.py:$1" --workdir "$2" "${@:3}"; }
case $modality in
  rgb) run rgb runs/demo "$@" ;;
  depth) run depth runs/demo_depth "$@" ;;
  fusion)
    run rgb runs/demo "$@"
    run depth runs/demo_depth "$@"
    run fusion runs/demo_fusion --config.fusion.init_rgb_from=runs/demo --config.fusion.init_depth_from=runs/demo_depth "$@"
    ;;
  *)
    echo "error: unknown modality '$modality'; expected rgb, depth or fusion" >&2
    exit 1
    ;;
esac
