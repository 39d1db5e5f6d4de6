"""Each example answers under its real server, and its profile has its labels."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from stroboscope.auth.keys import generate_key
from stroboscope.auth.tokens import Tokens
from stroboscope.formats.pprof_reader import decode
from stroboscope.settings import Settings

ROOT = Path(__file__).parents[2]
KEY = generate_key()
SERVERS = {
    "uvicorn-fastapi": ("uvicorn", "examples.fastapi_app:app", "/checkout/{item}"),
    "uvicorn-asgi": ("uvicorn", "examples.asgi_app:app", "/hello"),
    "uvicorn-django": ("uvicorn", "examples.django_app:asgi", "/checkout/<int:item>"),
    "hypercorn-fastapi": ("hypercorn", "examples.fastapi_app:app", "/checkout/{item}"),
    "gthread-wsgi": ("gunicorn gthread", "examples.wsgi_app:app", "/hello"),
    "gthread-flask": ("gunicorn gthread", "examples.flask_app:app", "/checkout/<int:"),
    "gthread-django": ("gunicorn gthread", "examples.django_app:app", "/checkout/<int"),
    "gevent-flask": ("gunicorn gevent", "examples.flask_app:app", "/checkout/<int:"),
}


def command(server: str, app: str, port: int) -> list[str]:
    bind = f"127.0.0.1:{port}"
    if server == "uvicorn":
        return ["-m", "uvicorn", app, "--port", str(port), "--log-level", "warning"]
    if server == "hypercorn":
        return ["-m", "hypercorn", app, "--bind", bind]
    kind = server.split()[1]
    more = ["--threads", "4"] if kind == "gthread" else []
    return [
        *("-m", "gunicorn", app, "--bind", bind, "-k", kind),
        *("--preload", "--log-level", "warning", *more),
    ]


@contextmanager
def serving(server: str, app: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, *command(server, app, port)],
        cwd=ROOT,
        env={**os.environ, "STROBOSCOPE_KEYS": KEY},
    )
    base = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                httpx.get(base + "/debug/", timeout=5)
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield base
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
def test_a_labelled_profile_of_a_real_server(name: str) -> None:
    """One authenticated request gives CPU time under the right endpoint."""
    server, app, endpoint = SERVERS[name]
    token = Tokens(Settings(keys=(KEY,), service="shop")).mint(["profile"], 60)
    headers = {"Authorization": f"Bearer {token}"}
    done = threading.Event()

    def load(base: str) -> None:
        with httpx.Client(timeout=20) as client:
            while not done.is_set():
                client.get(base + "/checkout/5")

    with serving(server, app) as base:
        assert httpx.get(base + "/debug/pprof/profile").status_code == 401
        worker = threading.Thread(target=load, args=(base,))
        worker.start()
        try:
            answer = httpx.get(
                base + "/debug/pprof/profile?seconds=2", headers=headers, timeout=20
            )
        finally:
            done.set()
            worker.join()

    assert answer.status_code == 200, answer.text
    profile = decode(answer.content)
    labels = {dict(s.labels).get("endpoint", "") for s in profile.samples}
    assert any(label.startswith(endpoint) for label in labels), labels
    labelled = [s for s in profile.samples if s.labels]
    assert sum(s.values[1] for s in labelled) > 0.1 * profile.total()


@pytest.mark.slow
def test_a_sync_worker_answers_with_a_valid_profile() -> None:
    """It serves nothing else meanwhile, so its profile is empty, and valid."""
    token = Tokens(Settings(keys=(KEY,), service="shop")).mint(["profile"], 60)

    with serving("gunicorn sync", "examples.wsgi_app:app") as base:
        answer = httpx.get(
            base + "/debug/pprof/profile?seconds=1",
            headers={"Authorization": f"Bearer {token}"},
            timeout=20,
        )

    assert answer.status_code == 200
    assert decode(answer.content).duration_ns >= 1e9
