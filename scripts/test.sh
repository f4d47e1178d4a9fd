#!/usr/bin/env bash
# Lint, format, types and tests; arguments go to pytest: ./scripts/test.sh -k parity
#   ./scripts/test.sh --torch    installs PyTorch into .venv first, for the tests that compare with it
#   ./scripts/test.sh --onnx     the same for the packages that export to ONNX
#   ./scripts/test.sh --plan     the same for the compilers for TPUs and GPUs, see setup.sh
#   ./scripts/test.sh --docs     the same for MkDocs and Jupyter, for the documentation
#   ./scripts/test.sh --gcs      the same for object storage and an emulator of it; all of them may be given
#
# PyTorch is installed from pip's package index. For Linux on x86-64 the public index has only the CUDA build, of several
# GB; with PIP_EXTRA_INDEX_URL set to PyTorch's own index (see its installation page) pip prefers the CPU build, 0.2 GB.
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
      echo "error: $what cannot be installed (see pip's message above); without its option its tests are skipped" >&2
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
    --onnx) provide "ONNX packages" requirements-onnx.txt --no-deps ;;
    --plan) ./scripts/setup.sh plan ;;
    --docs) provide "MkDocs and Jupyter" requirements-docs.txt ;;
    --gcs) provide "object storage and its emulator" requirements-gcs.txt ;;
    *) break ;;
  esac
  shift
done

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two files at a time: the tests of one file run in sequence, so that two parity tests never need memory together.
exec .venv/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
