#!/usr/bin/env bash
# Run the whole suite: lint and types once, the tests on every CPython found here. What is
# served by real servers, and whatever else is slow, runs on the first interpreter only,
# and mostly waits: it runs beside the rest.
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

run_tests() { # run_tests ENVIRONMENT NAME [pytest arguments ...]
  local name=$2 command=(".venvs/$1/bin/python" -m pytest -q --durations=15 -o cache_dir=".cache/pytest/$2")
  shift 2
  echo "== $name"
  # Many tests measure time, which another load on the machine takes from them: those
  # that failed get one more run, alone, at the end. What is broken fails again.
  local code=0
  "${command[@]}" "$@" || code=$?
  [ "$code" = 0 ] || echo "$code" >".cache/pytest/$name.failed"
}

once_more() { # the same arguments
  local name=$2 failed=".cache/pytest/$2.failed" code
  [ -f "$failed" ] || return 0
  code=$(cat "$failed")
  [ "$code" = 1 ] || return "$code"
  local command=(".venvs/$1/bin/python" -m pytest -q -o cache_dir=".cache/pytest/$2")
  shift 2
  echo "== $name: once more, what failed"
  "${command[@]}" --last-failed --last-failed-no-failures none "$@"
}

bash scripts/venv.sh "${PYTHON:-python3}" main
echo "== main: $(.venvs/main/bin/python -V)"
.venvs/main/bin/ruff check stroboscope tests
.venvs/main/bin/ruff check --select F bench examples scripts
.venvs/main/bin/ruff format --check stroboscope tests
.venvs/main/bin/mypy
.venvs/main/bin/lint-imports

main=$(.venvs/main/bin/python -c "import sys; print('%d.%d' % sys.version_info[:2])")
versions=()
for version in 3.11 3.12 3.13; do
  [ "$version" = "$main" ] && continue
  python=$(find_python "$version")
  if [ -z "$python" ]; then
    echo "== $version: not on this machine, not tested"
    continue
  fi
  # One extension file per version lives side by side in the source tree.
  bash scripts/venv.sh "$python" "$version"
  versions+=("$version")
done

rm -rf .cache/pytest && mkdir -p .cache/pytest
set -m # a process group of its own, which ends with us
run_tests main served -m slow "$@" >.cache/pytest/served.log 2>&1 &
served=$!
set +m
trap 'kill -- "-$served" 2>/dev/null || true' EXIT
for name in main "${versions[@]}"; do
  run_tests "$name" "$name" -m "not slow" "$@"
done
wait "$served"
trap - EXIT
cat .cache/pytest/served.log
status=0
once_more main served -m slow "$@" || status=1
for name in main "${versions[@]}"; do
  once_more "$name" "$name" -m "not slow" "$@" || status=1
done
exit $status
