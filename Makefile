# `make demo` shows it, `make test` proves it; both need python3 >= 3.11 and a C compiler.
PYTHON ?= python3
SHELL := /bin/bash

.PHONY: demo test lint clean

demo: .venv/.stamp
	@.venv/bin/python scripts/demo.py

.venv/.stamp: pyproject.toml setup.py $(wildcard stroboscope/_core/src/*)
	@echo "Making .venv and building the engine ..."
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install -q --disable-pip-version-check -e '.[fastapi]' 'uvicorn>=0.38'
	@touch .venv/.stamp

test:
	@PYTHON="$(PYTHON)" bash scripts/test.sh

lint: .venvs/main/.stamp
	.venvs/main/bin/ruff check stroboscope tests
	.venvs/main/bin/ruff check --select F bench examples scripts
	.venvs/main/bin/ruff format --check stroboscope tests
	.venvs/main/bin/mypy
	.venvs/main/bin/lint-imports

.venvs/main/.stamp: pyproject.toml setup.py $(wildcard stroboscope/_core/src/*)
	@bash scripts/venv.sh "$(PYTHON)" main

clean:
	rm -rf .venv .venvs .cache build dist *.egg-info stroboscope/_core/*.so

HAMMER_SECONDS ?= 600
.PHONY: hammer
hammer: .venvs/main/.stamp
	.venvs/main/bin/python -W ignore tests/native/hammer.py $(HAMMER_SECONDS)

# The surface, over ASGI and WSGI, with as many made-up requests as one likes.
FUZZ_EXAMPLES ?= 20000
.PHONY: fuzz
fuzz: .venvs/main/.stamp
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) .venvs/main/bin/python -m pytest -q --timeout 7200 tests/endpoints/test_fuzz.py -k sent
	SCHEMATHESIS_PHASES=examples,coverage,fuzzing .venvs/main/bin/python -m pytest -q tests/integrations/test_real_clients.py -k schemathesis

# The same with the sanitizers compiled in, and a short one under valgrind.
.PHONY: sanitize valgrind
sanitize:
	@PYTHON="$(PYTHON)" bash tests/native/sanitize.sh $(HAMMER_SECONDS)
valgrind: .venvs/main/.stamp
	@bash tests/native/valgrind.sh

# CPython 3.14 and 3.15, in a chroot; needs root and debootstrap.
.PHONY: test-next
test-next:
	@bash scripts/next.sh

# The C engine compiles for AArch64, without a warning; needs gcc-aarch64-linux-gnu.
.PHONY: aarch64
aarch64: .venvs/main/.stamp
	@bash scripts/aarch64.sh

# Every measurement, with the peers beside us: about fifteen minutes.
.PHONY: bench
BENCH_SECONDS ?= 30
bench:
	@$(PYTHON) -m venv .venvs/bench
	@.venvs/bench/bin/python -m pip install -q --disable-pip-version-check -U pip setuptools
	@.venvs/bench/bin/python -m pip install -q --disable-pip-version-check ddtrace pyroscope-io memray zstandard \
	  uvicorn fastapi flask gunicorn gevent django anyio asgiref opentelemetry-instrumentation-fastapi
	@.venvs/bench/bin/python -m pip install -q --disable-pip-version-check --force-reinstall --no-deps .
	@.venvs/bench/bin/python -m pip install -q --disable-pip-version-check .
	@.venvs/bench/bin/python -m bench $(BENCH_SECONDS)

# A stall of 300 ms with 50 requests in flight, over and over, on both loops.
STALLS ?= 100
.PHONY: stalls
stalls: .venvs/main/.stamp
	PYTHONPATH=tests/helpers .venvs/main/bin/python -W ignore tests/stalls/hundred.py $(STALLS) asyncio
	PYTHONPATH=tests/helpers .venvs/main/bin/python -W ignore tests/stalls/hundred.py $(STALLS) uvloop

# How soon somebody answers for a worker that is stuck or killed, every round shown.
STUCK ?= 20
.PHONY: stuck
stuck: .venvs/main/.stamp
	.venvs/main/bin/python -W ignore -m bench.stuck $(STUCK)

# The longest pause of a served loop, at rest and in each kind of capture: looked at
# longer than `make test` does.
PAUSE_ROUNDS ?= 15
PAUSE_SECONDS ?= 2
.PHONY: pauses
pauses: .venvs/main/.stamp
	PAUSE_ROUNDS=$(PAUSE_ROUNDS) PAUSE_SECONDS=$(PAUSE_SECONDS) .venvs/main/bin/python -m pytest \
	  -q -s --timeout 3600 tests/integrations/test_pauses_served.py

# Many ask two workers of greenlets for everything at once: a round are 480 requests.
GREENLET_ROUNDS ?= 50
.PHONY: greenlets
greenlets: .venvs/main/.stamp
	GREENLET_ROUNDS=$(GREENLET_ROUNDS) .venvs/main/bin/python -m pytest -q --timeout 3600 \
	  tests/integrations/test_greenlets_served.py

# The real Parca, built from Go's module proxy, scrapes every profile of two workers.
.PHONY: parca
parca: .venvs/main/.stamp
	PYTHONPATH=tests/helpers .venvs/main/bin/python -W ignore tests/scraped/parca.py
