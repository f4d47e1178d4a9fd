#!/usr/bin/env bash
# Makes or brings up to date .venv in the checkout, from requirements.lock; does nothing if it is up to date.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stamp=.venv/installed.lock
wanted=$(cat requirements.lock pyproject.toml)
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
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

echo "setting up .venv from requirements.lock (once, a minute or two)" >&2
[ -x .venv/bin/python ] || "$python" -m venv --clear .venv
.venv/bin/python -m pip install -qq --require-hashes --requirement requirements.lock >&2
.venv/bin/python -m pip install -qq --no-deps --editable . >&2
printf '%s' "$wanted" >"$stamp"
