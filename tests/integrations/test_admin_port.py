"""The admin port: one address that always some worker answers, beside the application."""

import os
import signal
import socket
import ssl
import time
from pathlib import Path

import httpx
import pytest
import trustme
from servers import FASTAPI, FLASK, GUNICORN, KEY, UVICORN, serving, token

from stroboscope import Settings
from stroboscope.errors import SettingsError

TAKEOVER_S = 2.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def bearer(*scopes: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(*scopes)}"}


def owner(client: httpx.Client, base: str) -> int:
    """The process that has the port, by its own word; asks until one answers."""
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        try:
            found = client.get(f"{base}/debug/workers", headers=bearer("metrics"))
            for worker in found.json()["workers"]:
                if worker.get("admin") == "open":
                    return int(worker["pid"])
        except httpx.HTTPError:
            pass
        time.sleep(0.02)
    raise AssertionError("nobody has the admin port")


@pytest.mark.parametrize(
    ("command", "app"),
    [
        (UVICORN + "--workers 2", FASTAPI),
        (GUNICORN + "--workers 2 --threads 4", FLASK),
        (GUNICORN + "--workers 2 -k gevent", FLASK),
        (GUNICORN + "--workers 2 --preload --threads 2", FLASK),
    ],
)
def test_the_next_worker_has_the_port_within_2_s(command: str, app: str) -> None:
    """After SIGKILL of its owner; all workers are there by it, and a key is needed."""
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    bind = {"STROBOSCOPE_ADMIN_BIND": f"127.0.0.1:{port}"}
    with serving(command, app, **bind) as (public, _), httpx.Client(timeout=5) as ask:
        for _ in range(60):  # until both workers have had a request
            httpx.get(public + "/")
            if len(_workers(ask, base)) >= 2:
                break
            time.sleep(0.1)
        first = owner(ask, base)
        refused = ask.get(f"{base}/debug/workers")

        os.kill(first, signal.SIGKILL)
        began = time.monotonic()
        second = first
        while second == first:
            second = owner(ask, base)
        took_s = time.monotonic() - began

    assert refused.status_code == 401
    assert second != first
    assert took_s <= TAKEOVER_S


def _workers(ask: httpx.Client, base: str) -> list[dict[str, object]]:
    try:
        found = ask.get(f"{base}/debug/workers", headers=bearer("metrics"))
        return list(found.json()["workers"])
    except httpx.HTTPError:
        return []


def test_it_answers_while_the_application_is_stuck(tmp_path: Path) -> None:
    """Every loop blocked for good: the profile still comes, with the busy function."""
    (tmp_path / "stuck.py").write_text(
        "from stroboscope.integrations.asgi import Stroboscope\n"
        "def spin():\n    while True: pass\n"
        "async def inner(scope, receive, send):\n"
        "    if scope['type'] == 'http' and scope['path'] == '/stuck': spin()\n"
        "    await receive()\n"
        "    await send({'type': scope['type'] + '.startup.complete'})\n"
        "app = Stroboscope(inner, service='shop')\n"
    )
    port = free_port()
    bind = {
        "STROBOSCOPE_ADMIN_BIND": f"127.0.0.1:{port}",
        "PYTHONPATH": str(tmp_path),
    }
    with serving(UVICORN, "stuck:app", **bind) as (public, pid):
        with httpx.Client(timeout=0.5) as client, pytest.raises(httpx.TimeoutException):
            client.get(public + "/stuck")
        base = f"http://127.0.0.1:{port}/debug"
        profile = httpx.get(
            f"{base}/pprof/profile?seconds=1", headers=bearer(), timeout=10
        )
        stacks = httpx.get(f"{base}/stacks", headers=bearer(), timeout=5)
        os.kill(pid, signal.SIGKILL)

    assert profile.status_code == 200
    assert "spin" in stacks.text


def test_it_speaks_tls(tmp_path: Path) -> None:
    """With a certificate it may listen where others can reach it, in TLS only."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    pem, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(pem)
    certificate.private_key_pem.write_to_path(key)
    port = free_port()
    bind = {
        "STROBOSCOPE_ADMIN_BIND": f"0.0.0.0:{port}",
        "STROBOSCOPE_ADMIN_CERTIFICATE": str(pem),
        "STROBOSCOPE_ADMIN_KEY": str(key),
    }
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with serving(GUNICORN + "-k gevent", FLASK, **bind):
        url = f"https://127.0.0.1:{port}/debug/stacks"
        owner(httpx.Client(verify=trusting), f"https://127.0.0.1:{port}")
        good = httpx.get(url, headers=bearer(), verify=trusting)
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http"), headers=bearer(), timeout=7)

    assert good.status_code == 200
    assert "=== " in good.text or "thread" in good.text


# httpcore leaves a socket behind that could not connect.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_unix_socket_is_taken_over_too(tmp_path: Path) -> None:
    """A dead owner's socket is replaced; its mode lets this user in alone."""
    path = tmp_path / "debug.sock"
    bind = {"STROBOSCOPE_ADMIN_BIND": f"unix:{path}"}
    transport = httpx.HTTPTransport(uds=str(path))
    ask = httpx.Client(transport=transport, timeout=5)
    with ask, serving(UVICORN + "--workers 2", FASTAPI, **bind):
        first = owner(ask, "http://localhost")
        mode = path.stat().st_mode & 0o777
        os.kill(first, signal.SIGKILL)
        second = first
        ends = time.monotonic() + 10
        while second == first and time.monotonic() < ends:
            second = owner(ask, "http://localhost")

    assert mode == 0o600
    assert second != first
    assert not path.exists()


@pytest.mark.parametrize(
    ("bind", "options", "is_allowed"),
    [
        ("127.0.0.1:6060", {}, True),
        ("localhost:6060", {}, True),
        ("[::1]:6060", {}, True),
        ("unix:/run/shop/debug.sock", {}, True),
        ("0.0.0.0:6060", {}, False),
        ("10.1.2.3:6060", {}, False),
        ("[::]:6060", {}, False),
        ("0.0.0.0:6060", {"admin_plaintext": True}, True),
        ("0.0.0.0:6060", {"admin_certificate": "c", "admin_key": "k"}, True),
        ("127.0.0.1:6060", {"admin_certificate": "c"}, False),
        ("example.test:6060", {}, False),
        ("127.0.0.1", {}, False),
        ("127.0.0.1:99999", {}, False),
        ("127.0.0.1:six", {}, False),
        ("unix:debug.sock", {}, False),
        ("unix:/" + "x" * 200, {}, False),
    ],
)
def test_h02_an_open_port_needs_tls_or_a_word(
    bind: str, options: dict[str, object], is_allowed: bool
) -> None:
    """Only this host's own addresses may speak plain HTTP without being told so."""
    if is_allowed:
        assert Settings(keys=(KEY,), admin_bind=bind, **options).admin_bind == bind
    else:
        with pytest.raises(SettingsError, match="admin_"):
            Settings(keys=(KEY,), admin_bind=bind, **options)
