#!/usr/bin/env bash
# Trains and evaluates a small network on rendered hand motions; arguments go to rgbd_jax.main.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh
exec .venv/bin/python -m rgbd_jax.main --config configs/demo.py --workdir runs/demo "$@"
