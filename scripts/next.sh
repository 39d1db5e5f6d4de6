#!/usr/bin/env bash
# Test on CPython 3.14 and 3.15, in a Debian system of their own outside the repository.
# Needs root and debootstrap; the first run takes some minutes and 1 GB.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "make test-next needs root: it makes a chroot" >&2; exit 2; }
command -v debootstrap >/dev/null || { echo "make test-next needs debootstrap" >&2; exit 2; }
# Mounts are made in a namespace of our own: they end with it, whatever happens, and
# nothing of the host is ever below a folder that is removed.
if [ "${NEXT_NAMESPACE:-}" != own ]; then
  NEXT_NAMESPACE=own exec unshare --mount --propagation private bash "scripts/next.sh" "$@"
fi

versions=${NEXT_VERSIONS:-3.14 3.15}
system=${NEXT_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/stroboscope/next}
suites="tests/core tests/labels tests/formats tests/native tests/endpoints tests/cli tests/tracing tests/profiles tests/stalls tests/workers tests/middleware"

if [ ! -f "$system/.made" ]; then
  if [ -e "$system" ] && grep -q " $(realpath "$system")/" /proc/self/mounts; then
    echo "$system has mounts below it; unmount them first" >&2
    exit 2
  fi
  rm -rf --one-file-system "$system"
  mkdir -p "$system"
  packages=gcc,libc6-dev,ca-certificates
  for version in $versions; do
    packages+=,python$version,python$version-dev,python$version-venv
  done
  debootstrap --variant=minbase --include="$packages" sid "$system"
  touch "$system/.made"
fi
# Where the host reaches its package index through a proxy, so must the system.
cp /etc/ssl/certs/ca-certificates.crt "$system/etc/ssl/certs/ca-certificates.crt"
cp -L /etc/resolv.conf /etc/hosts "$system/etc/"
[ ! -f /etc/pip.conf ] || cp /etc/pip.conf "$system/etc/"

mount -t proc proc "$system/proc"
mount -t tmpfs -o mode=0755 tmpfs "$system/dev"
mkdir "$system/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$system/dev/shm"
for device in null zero full random urandom tty; do
  touch "$system/dev/$device"
  mount --bind "/dev/$device" "$system/dev/$device"
done
ln -s /proc/self/fd "$system/dev/fd"

rm -rf --one-file-system "$system/src"
mkdir -p "$system/src"
tar -c --exclude='*.so' --exclude=__pycache__ --exclude='*.egg-info' \
  stroboscope tests examples docs scripts setup.py pyproject.toml MANIFEST.in README.md \
  LICENSE SECURITY.md | tar -x -C "$system/src"

status=0
for version in $versions; do
  echo "== $version"
  chroot "$system" /usr/bin/env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt HOME=/root LANG=C.UTF-8 \
    bash -euc '
      cd /src
      version=$1 suites=$2
      venv=/venv/$version
      [ -d "$venv" ] || "python$version" -m venv "$venv"
      pip="$venv/bin/python -m pip install -q --disable-pip-version-check"
      $pip -U pip setuptools
      # What has C parts of its own is not built for every new interpreter yet: what is
      # missing is named here, and so are the tests that skip for it.
      "$venv/bin/python" -c "
import tomllib
for wanted in tomllib.load(open(\"pyproject.toml\", \"rb\"))[\"dependency-groups\"][\"test\"]:
    print(wanted)" | while read -r wanted; do
        $pip --only-binary :all: "$wanted" || echo "not for $version yet: $wanted"
      done
      $pip --force-reinstall --no-deps --no-build-isolation -e .
      $pip -e .
      # Greenlets have C parts of their own, too; and what pprof makes of a file does
      # not depend on the interpreter that wrote it.
      "$venv/bin/python" -m pytest -q -rs $suites \
        -k "not greenlet and not gevent and not go_tool"
    ' next "$version" "$suites" || status=1
done
exit $status
