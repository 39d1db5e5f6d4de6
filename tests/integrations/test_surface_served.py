"""The surface behind real servers: logs, prefixes, slow and half-open clients."""

import http.client
import json
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from counting import nothing_leaks
from servers import FASTAPI, FLASK, GUNICORN, KEY, ROOT, UVICORN, serving, token

from stroboscope.formats.pprof_reader import decode

LOGGING = {
    "uvicorn": ("uvicorn --port {port}", FASTAPI),
    "hypercorn": ("hypercorn --bind 127.0.0.1:{port} --access-logfile -", FASTAPI),
    "gunicorn": (
        "gunicorn --bind 127.0.0.1:{port} -k gthread --threads 4 --access-logfile -",
        FLASK,
    ),
    "django-gunicorn": (
        "gunicorn --bind 127.0.0.1:{port} -k gthread --threads 4 --access-logfile -",
        "django_site:app",
    ),
    "django-uvicorn": ("uvicorn --port {port}", "django_site:asgi"),
}
QUIET = "uvicorn --log-level warning --port {port} "


def bearer(*scopes: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(*scopes)}"}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOGGING)
def test_h13_access_logs_hold_no_token_and_no_link(name: str, tmp_path: Path) -> None:
    """Header, Basic and share link, in the server's own access log."""
    command, app = LOGGING[name]
    text = token("profile")
    log = tmp_path / "log"
    with log.open("wb") as output, serving(command, app, output) as (base, _):
        headers = {"Authorization": f"Bearer {text}"}
        asked = {"path": "/pprof/profile?seconds=0.2", "ttl": "1m"}
        made = httpx.post(base + "/debug/share", headers=headers, json=asked).json()
        shared = httpx.get(base + made["url"], timeout=20)
        basic = httpx.get(base + "/debug/stacks", auth=("x", text))
        bad = httpx.get(base + made["url"][:-2])
        # Still good, and refused: Django itself logs the path of every refusal.
        other = {"Host": "evil.test"}
        asked = {"path": "/stacks", "ttl": "1m"}
        fresh = httpx.post(base + "/debug/share", headers=headers, json=asked).json()
        refused = httpx.get(base + fresh["url"], headers=other)
        time.sleep(0.5)

    assert (shared.status_code, basic.status_code, bad.status_code) == (200, 200, 401)
    assert decode(shared.content).duration_ns > 0
    written = log.read_text(errors="replace")
    assert "/debug/share" in written
    assert refused.status_code == 400
    link, second = (one["url"].rpartition("/")[2] for one in (made, fresh))
    for secret in (text, second, link, link[: len(link) // 2], link[-20:], KEY):
        assert secret not in written


@pytest.mark.slow
def test_settings_switch_and_return_in_a_served_application() -> None:
    """PUT over HTTP, seen by the next profile, back after its ttl."""
    with serving(QUIET, FASTAPI) as (base, _):
        headers = bearer("admin")
        put = httpx.put(
            base + "/debug/settings", headers=headers, json={"cpu_hz": 50, "ttl": "2s"}
        )
        fast = httpx.get(
            base + "/debug/pprof/profile?seconds=0.2", headers=headers, timeout=20
        )
        time.sleep(2.5)
        back = httpx.get(base + "/debug/settings", headers=headers).json()

    assert put.status_code == 200
    assert decode(fast.content).period == 20_000_000
    assert back["settings"]["cpu_hz"]["overridden"] is False


@pytest.mark.slow
def test_an_application_under_a_prefix_keeps_its_surface() -> None:
    """Behind `--root-path` the mount is where the application is."""
    command = QUIET + "--root-path /shop"
    with serving(command, FASTAPI) as (base, _):
        connection = http.client.HTTPConnection(base.removeprefix("http://"))
        statuses = []
        for path in ("/debug/", "/shop/debug/"):
            connection.request("GET", path, headers=bearer("metrics"))
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        connection.close()

    assert 200 in statuses
    assert json.dumps(statuses).count("30") == 0


@pytest.mark.slow
def test_a_thousand_openings_and_closings_leave_nothing() -> None:
    """Windows opened and closed quickly while threads churn: none stays."""
    code = """
import os, threading, time
from stroboscope._core import engine
stop = threading.Event()
def churn():
    while not stop.is_set():
        t = threading.Thread(target=sum, args=(range(2000),)); t.start(); t.join()
some = [threading.Thread(target=churn) for _ in range(3)]
for t in some: t.start()
for _ in range(1000):
    engine.open_window(250).close()
stop.set()
for t in some: t.join()
info = engine.info()
print(info.windows, info.counters["active"], info.counters["threads"])
time.sleep(0.5)
print(len(os.listdir("/proc/self/task")))
"""
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=110,
    )

    assert done.stdout.split() == ["0", "0", "0", "1"], done.stderr


@pytest.mark.parametrize(
    ("command", "app"),
    [
        (UVICORN, FASTAPI),
        (GUNICORN + "-k gthread", FLASK),
        (GUNICORN + "-k gevent", FLASK),
    ],
    ids=["uvicorn", "gthread", "gevent"],
)
def test_thirty_questions_leave_no_file_open(command: str, app: str) -> None:
    """Nor a socket or a thread, whatever our threads touched."""
    headers = {"Authorization": f"Bearer {token('admin')}"}
    with (
        serving(command, app) as (base, _),
        httpx.Client(base_url=base, headers=headers, timeout=20) as client,
    ):
        for path in ("/debug/stacks", "/debug/trace?seconds=0.1"):
            assert client.get(path).status_code == 200
        (worker,) = client.get("/debug/workers").json()["workers"]
        time.sleep(0.5)
        with nothing_leaks([worker["pid"]], clients=1):
            for _ in range(10):
                for path in ("/debug/stacks", "/debug/trace?seconds=0.1", "/debug/gc"):
                    assert client.get(path).status_code in (200, 429)
                time.sleep(0.1)
