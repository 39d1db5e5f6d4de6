#!/usr/bin/env bash
# Run the whole suite: lint and types once, the tests on every CPython found here. What is
# served by real servers, and whatever else is slow, runs on the first interpreter only,
# and mostly waits. So three streams run beside each other, about equally long: the
# servers; what else is slow, and the last interpreter; the other interpreters.
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
quick="not slow" slow="slow and not served"
names=(main "${versions[@]}")
last=
[ ${#versions[@]} = 0 ] || last=${versions[-1]}
set -m # process groups of their own, which end with us
run_tests main served -m served "$@" >.cache/pytest/served.log 2>&1 &
served=$!
{
  run_tests main slow -m "$slow" "$@"
  [ -z "$last" ] || run_tests "$last" "$last" -m "$quick" "$@"
} >.cache/pytest/slow.log 2>&1 &
beside=$!
set +m
trap 'kill -- "-$served" "-$beside" 2>/dev/null || true' EXIT
for name in "${names[@]}"; do
  [ "$name" = "$last" ] || run_tests "$name" "$name" -m "$quick" "$@"
done
wait "$beside" "$served"
trap - EXIT
cat .cache/pytest/slow.log .cache/pytest/served.log
status=0
once_more main served -m served "$@" || status=1
once_more main slow -m "$slow" "$@" || status=1
for name in "${names[@]}"; do
  once_more "$name" "$name" -m "$quick" "$@" || status=1
done
exit $status
