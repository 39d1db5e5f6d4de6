#!/usr/bin/env bash
# Run the whole suite: lint and types once, the tests on every CPython found here. What is
# served by real servers, and whatever else is slow, runs on the first interpreter only.
set -euo pipefail
cd "$(dirname "$0")/.."

find_python() { # find_python 3.12: its path, or nothing
  local candidate
  for candidate in "$(command -v "python$1" || true)" "$HOME"/.pyenv/versions/"$1".*/bin/"python$1"; do
    if [ -n "$candidate" ] && [ -x "$candidate" ] && "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
}

run_tests() { # run_tests NAME [pytest arguments ...]
  local python=".venvs/$1/bin/python" code=0
  shift
  "$python" -m pytest -q "$@" || code=$?
  [ "$code" = 1 ] || return "$code"
  # Many tests measure time, which another load on the machine takes from them: those
  # that failed get one more run, alone. What is broken fails again.
  echo "== once more, what failed"
  "$python" -m pytest -q --last-failed --last-failed-no-failures none "$@"
}

bash scripts/venv.sh "${PYTHON:-python3}" main
echo "== main: $(.venvs/main/bin/python -V)"
.venvs/main/bin/ruff check stroboscope tests
.venvs/main/bin/ruff check --select F bench examples scripts
.venvs/main/bin/ruff format --check stroboscope tests
.venvs/main/bin/mypy
.venvs/main/bin/lint-imports
status=0
main=$(.venvs/main/bin/python -c "import sys; print('%d.%d' % sys.version_info[:2])")
for version in 3.11 3.12 3.13; do
  [ "$version" = "$main" ] && continue
  python=$(find_python "$version")
  if [ -z "$python" ]; then
    echo "== $version: not on this machine, not tested"
    continue
  fi
  # One extension file per version lives side by side in the source tree.
  bash scripts/venv.sh "$python" "$version"
  echo "== $version"
  run_tests "$version" -m "not slow" --ignore tests/integrations "$@" || status=1
done
echo "== $main"
run_tests main "$@" || status=1
exit $status
