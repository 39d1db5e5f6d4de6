"""The surface behind real servers: logs, prefixes, slow and half-open clients."""

import http.client
import json
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest
from servers import FASTAPI, FLASK, KEY, ROOT, serving, token

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
def test_h25_slow_readers_and_half_open_connections_cost_nobody(tmp_path: Path) -> None:
    """With 300 connections that never end, and one that never reads, others are
    served: the application at once, and a second capture."""
    with serving(QUIET, FASTAPI) as (base, pid):
        port = int(base.rpartition(":")[2])
        held = []
        for i in range(300):
            one = socket.create_connection(("127.0.0.1", port))
            line = (
                f"GET /debug/pprof/profile?seconds={i} HTTP/1.1\r\nHost: localhost\r\n"
            )
            one.sendall(line.encode())
            held.append(one)
        slow = socket.create_connection(("127.0.0.1", port))
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        asked = (
            "GET /debug/stacks HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {token()}\r\n\r\n"
        )
        slow.sendall(asked.encode())
        before_kb = _resident_kb(pid)
        took = []
        for _ in range(30):
            began = time.monotonic()
            assert httpx.get(base + "/search", timeout=10).status_code == 200
            took.append(time.monotonic() - began)
        answer = httpx.get(
            base + "/debug/pprof/profile?seconds=0.3", headers=bearer(), timeout=20
        )
        grown_kb = _resident_kb(pid) - before_kb
        for one in (*held, slow):
            one.close()

    assert answer.status_code == 200
    assert sorted(took)[15] < 0.5
    assert grown_kb < 30_000


def _resident_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


@pytest.mark.slow
def test_h48_plain_http_is_served(tmp_path: Path) -> None:
    """HTTP/1.0, an absolute-form address, HEAD and pipelining, on a raw socket."""

    def talk(port: int, text: str) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
            one.sendall(text.encode())
            one.settimeout(2)
            got = b""
            try:
                while chunk := one.recv(65536):
                    got += chunk
            except TimeoutError:
                pass
            return got

    with serving(QUIET, FASTAPI) as (base, _):
        port = int(base.rpartition(":")[2])
        auth = f"Authorization: Bearer {token('metrics')}\r\n"
        path = "/debug/metrics"
        old = talk(port, f"GET {path} HTTP/1.0\r\nHost: localhost\r\n{auth}\r\n")
        hostless = talk(port, f"GET {path} HTTP/1.0\r\n{auth}\r\n")
        one = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{auth}\r\n"
        piped = talk(port, one + one)
        head = talk(port, f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n{auth}\r\n")

    assert b" 200 OK" in old
    assert b" 400 " in hostless.splitlines()[0]
    assert piped.count(b" 200 OK") == 2
    assert b" 405 " in head.splitlines()[0]


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
import threading
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
"""
    import sys

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=110,
    )

    assert done.stdout.split() == ["0", "0", "0"], done.stderr
    assert threading.active_count() < 50
