#!/usr/bin/env bash
# venv.sh PYTHON NAME: make .venvs/NAME with the project and what its tests need.
# Does nothing when pyproject.toml, setup.py and the C sources are older than it.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
folder=.venvs/$2
stamp=$folder/.stamp
if [ -f "$stamp" ] && [ -z "$(find pyproject.toml setup.py stroboscope/_core/src -newer "$stamp" -print -quit)" ]; then
  exit 0
fi
[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
"$folder/bin/python" -m pip install -q --disable-pip-version-check -U 'pip>=25.1' setuptools
"$folder/bin/python" -m pip install -q --disable-pip-version-check --group test --group lint
"$folder/bin/python" -m pip install -q --disable-pip-version-check --force-reinstall --no-deps -e .
"$folder/bin/python" -m pip install -q --disable-pip-version-check -e .
touch "$stamp"
