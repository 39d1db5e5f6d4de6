#!/usr/bin/env bash
# The C engine for AArch64, by a cross compiler and the headers of every CPython found
# here: each file has to compile without a warning, and all of them to link. Needs
# gcc-aarch64-linux-gnu (Debian's name). The headers are this machine's: CPython's own
# pyconfig.h of 64-bit Linux says the same on both.
set -euo pipefail
cd "$(dirname "$0")/.."

cross=${AARCH64_CC:-aarch64-linux-gnu-gcc}
command -v "$cross" >/dev/null || { echo "make aarch64 needs $cross (gcc-aarch64-linux-gnu)" >&2; exit 2; }
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
flags="-std=c11 -Wall -Wextra -Wshadow -Werror -fno-strict-aliasing -fvisibility=hidden -O2 -DNDEBUG -fPIC"

for python in .venvs/main/bin/python .venvs/3.*/bin/python; do
  [ -x "$python" ] || continue
  headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  # shellcheck disable=SC2086
  "$cross" $flags -shared -I"$headers" stroboscope/_core/src/*.c -lm -o "$made/_native.so"
  echo "AArch64: $("$python" -V): $(wc -c <"$made/_native.so") bytes, no warning"
done
