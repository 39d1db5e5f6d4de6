#!/usr/bin/env bash
# The engine built with AddressSanitizer and UndefinedBehaviorSanitizer, under the crash
# hunt and its own tests: `tests/native/sanitize.sh [SECONDS]`.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-60}
python=${PYTHON:-python3}
folder=.venvs/sanitize
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
pip="$folder/bin/python -m pip install -q --disable-pip-version-check"
$pip -U 'pip>=25.1' setuptools
$pip pytest pytest-timeout hypothesis starlette werkzeug itsdangerous opentelemetry-sdk pyelftools
# Not editable, and from a copy: the extension in the source tree stays the fast one.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
tar -c --exclude='*.so' --exclude=__pycache__ stroboscope setup.py pyproject.toml \
  MANIFEST.in README.md LICENSE tests | tar -x -C "$copy"
STROBOSCOPE_SANITIZE=1 $pip --force-reinstall --no-deps --no-build-isolation "$copy"
rm -rf "$copy/stroboscope"

# The engine takes SIGSEGV for its own reads and hands others on: the sanitizer must let
# it. Leaks of the interpreter itself are not ours to report.
export ASAN_OPTIONS=allow_user_segv_handler=1:handle_segv=1:handle_sigbus=1:detect_leaks=0
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export PYTHONMALLOC=malloc
preload="$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so)"
interpreter=$PWD/$folder/bin/python
cd "$copy"
LD_PRELOAD=$preload "$interpreter" tests/native/hammer.py "$seconds" no-fork
# Over pymalloc the heap's samples are asked for and freed in another way.
PYTHONMALLOC=pymalloc LD_PRELOAD=$preload "$interpreter" tests/native/hammer.py \
  $((seconds / 4 + 1)) no-fork
