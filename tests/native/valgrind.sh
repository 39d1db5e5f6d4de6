#!/usr/bin/env bash
# A quiet run under valgrind; fails when one of our C files is in an error's stack. The
# interpreter has hundreds of its own, the same without us.
set -euo pipefail
cd "$(dirname "$0")/../.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
PYTHONMALLOC=malloc valgrind --num-callers=40 --log-file="$log" \
  .venvs/main/bin/python -W ignore tests/native/quiet.py
tail -n 1 "$log"
ours=$(basename -a stroboscope/_core/src/*.[ch] | sed 's/\./\\./' | paste -sd '|')
if grep -E "\(($ours):[0-9]+\)|_native" "$log"; then
  echo "errors in our code, see above" >&2
  exit 1
fi
