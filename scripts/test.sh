#!/usr/bin/env bash
# Lint, format, types and tests; arguments go to pytest: ./scripts/test.sh -k parity
#   ./scripts/test.sh --torch    installs PyTorch into .venv first, so that the tests that compare with it run too
#   ./scripts/test.sh --onnx     the same for what the export to ONNX needs; both may be given
#
# PyTorch comes from the package index that pip is set up for: 0.2 GB. For Linux on x86-64 the public index has the CUDA
# build alone, several GB, with which the tests run just as well; PyTorch keeps its CPU build at an index of its own
# (its installation page tells which), and pip prefers that one when PIP_EXTRA_INDEX_URL names the index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh

# provide WHAT FILE OPTION...: once, and again when the file changes.
provide() {
  local what=$1 file=$2
  shift 2
  local stamp=".venv/installed-${file#requirements-}"
  if ! cmp -s "$file" "$stamp"; then
    echo "installing $what into .venv (once, a minute or more)" >&2
    # Nothing that requirements.lock pins may move.
    if ! .venv/bin/python -m pip install -qq --requirement "$file" --constraint .venv/constraints.txt "$@" >&2; then
      echo "error: $what cannot be installed (pip says why above); without its option its tests are skipped" >&2
      exit 1
    fi
    cp "$file" "$stamp"
  fi
}

while true; do
  case "${1:-}" in
    --torch)
      provide PyTorch requirements-torch.txt
      .venv/bin/python -c 'import torch; print("PyTorch", torch.__version__)' >&2
      ;;
    --onnx) provide "what ONNX needs" requirements-onnx.txt --no-deps ;;
    *) break ;;
  esac
  shift
done

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two files at a time: tests of one file stay together, so that those of parity, which take most memory, never meet.
exec .venv/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
