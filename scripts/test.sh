#!/usr/bin/env bash
# Lint, format, types and tests; arguments go to pytest: ./scripts/test.sh -k parity
#   ./scripts/test.sh --torch    installs PyTorch into .venv first, so that the tests that compare with it run too
#
# PyTorch comes from the package index that pip is set up for: 0.2 GB. For Linux on x86-64 the public index has the CUDA
# build alone, several GB, with which the tests run just as well; PyTorch keeps its CPU build at an index of its own
# (its installation page tells which), and pip prefers that one when PIP_EXTRA_INDEX_URL names the index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./scripts/setup.sh

if [ "${1:-}" = --torch ]; then
  shift
  if ! cmp -s requirements-torch.txt .venv/installed-torch.txt; then
    echo "installing PyTorch into .venv (once, a minute or more)" >&2
    # Nothing that requirements.lock pins may move; pip takes no hashes for some packages without hashes for all.
    .venv/bin/python -m pip freeze --exclude-editable >.venv/constraints.txt
    if ! .venv/bin/python -m pip install -qq --requirement requirements-torch.txt \
      --constraint .venv/constraints.txt >&2; then
      echo "error: PyTorch cannot be installed (pip says why above); without --torch its tests are skipped" >&2
      exit 1
    fi
    cp requirements-torch.txt .venv/installed-torch.txt
  fi
  .venv/bin/python -c 'import torch; print("PyTorch", torch.__version__)' >&2
fi

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Two files at a time: tests of one file stay together, so that those of parity, which take most memory, never meet.
exec .venv/bin/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder "$@"
