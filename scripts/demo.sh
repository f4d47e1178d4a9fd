#!/usr/bin/env bash
# Trains and evaluates small networks on rendered hand motions; finished runs are not trained again.
#   ./scripts/demo.sh           RGB
#   ./scripts/demo.sh depth     depth
#   ./scripts/demo.sh fusion    RGB, depth, then the fusion of both
#   ./scripts/demo.sh umdr_rgb, umdr_depth, umdr_fusion    the same with UMDR
# Further arguments go to rgbd_jax.main.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
modality=rgb
if [[ $# -gt 0 && $1 != -* ]]; then
  modality=$1
  shift
fi
demo=demo
if [[ $modality == umdr_* ]]; then
  demo=umdr_demo
fi
./scripts/setup.sh

run() { .venv/bin/python -m rgbd_jax.main --config "configs/$demo.py:$1" --workdir "$2" "${@:3}"; }
case ${modality#umdr_} in
  rgb) run rgb "runs/$demo" "$@" ;;
  depth) run depth "runs/${demo}_depth" "$@" ;;
  fusion)
    run rgb "runs/$demo" "$@"
    run depth "runs/${demo}_depth" "$@"
    run fusion "runs/${demo}_fusion" --config.fusion.init_rgb_from="runs/$demo" \
      --config.fusion.init_depth_from="runs/${demo}_depth" "$@"
    ;;
  *)
    echo "error: unknown modality '$modality'; expected rgb, depth or fusion, or umdr_ and one of them" >&2
    exit 1
    ;;
esac
