#!/usr/bin/env bash
# Creates or updates .venv in the checkout from requirements.lock; does nothing if it is up to date.
#   ./scripts/setup.sh         for CPUs
#   ./scripts/setup.sh cuda    JAX for NVIDIA GPUs too; `tpu` for TPUs; later calls remember it
#   ./scripts/setup.sh gcs     runs and data in Google Cloud Storage
#   ./scripts/setup.sh plan    the compilers that --mode=plan asks about TPUs and GPUs which need not be present
set -euo pipefail
if [ "${1:-}" = --help ]; then
  sed -nE '2,/^set/s/^# ?//p' "${BASH_SOURCE[0]}"
  exit
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

for extra in "$@"; do
  if [ "$extra" != cuda ] && [ "$extra" != tpu ] && [ "$extra" != gcs ] && [ "$extra" != plan ]; then
    echo "error: unknown argument '$extra'; expected cuda, tpu, gcs, plan or none" >&2
    exit 1
  fi
done
extras=$(printf '%s\n' "$@" $(cat .venv/extras 2>/dev/null) | sort -u | xargs | tr ' ' ',')

stamp=.venv/installed.lock
expected=$(echo "$extras" && cat requirements.lock requirements-plan.txt pyproject.toml)
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$expected" ]; then
  exit 0
fi

python=""
for candidate in python3.11 python3.12 python3.13 python3; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  echo "error: Python 3.11 or later is needed, found: $(python3 --version 2>&1 || echo none)" >&2
  exit 1
fi

echo "setting up .venv from requirements.lock${extras:+, with $extras} (once, a minute or two)" >&2
[ -x .venv/bin/python ] || "$python" -m venv --clear .venv
.venv/bin/python -m pip install -qq --require-hashes --requirement requirements.lock >&2
# For packages outside the lock: the same versions without hashes, which pip requires for all packages or for none.
sed -n 's/^\([A-Za-z0-9].*[^ ]\) *\\$/\1/p' requirements.lock >.venv/constraints.txt
packages=$(echo "$extras" | tr ',' '\n' | grep -v plan | xargs | tr ' ' ',' || true)
if [ -n "$packages" ]; then
  .venv/bin/python -m pip install -qq --editable ".[$packages]" --constraint .venv/constraints.txt >&2
else
  .venv/bin/python -m pip install -qq --no-deps --editable . >&2
fi
if [[ ",$extras," == *,plan,* ]]; then
  # Apart from the other packages: JAX would look for a GPU and a TPU at each start, and complain.
  compilers=(--no-deps --upgrade --target .venv/compilers --requirement requirements-plan.txt)
  .venv/bin/python -m pip install -qq "${compilers[@]}" >&2
fi
echo "$extras" | tr ',' '\n' >.venv/extras
printf '%s' "$expected" >"$stamp"
