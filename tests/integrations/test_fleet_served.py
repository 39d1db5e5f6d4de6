"""Real servers of two hosts, with greenlets, forks and loops, and a real Redis."""

import time
from collections.abc import Callable

import httpx
import pytest
from counting import nothing_leaks
from redis_servers import RedisServer
from servers import FASTAPI, FLASK, GUNICORN, UVICORN, serving, token
from workers import wait_until

SERVERS = {
    "gunicorn gevent": (GUNICORN + "-k gevent -w 2", FLASK),
    "gunicorn sync, preloaded": (GUNICORN + "-w 2 --preload", FLASK),
    "gunicorn gthread": (GUNICORN + "-k gthread --threads 4 -w 2 --preload", FLASK),
    "uvicorn": (UVICORN, FASTAPI),
    "uvicorn, workers": (UVICORN + "--workers 2", FASTAPI),
}


#: Threads a server may keep for those who ask it. To Redis any worker of a host may have
#: the one connection.
CLIENTS = 4


def asking(base: str) -> Callable[..., httpx.Response]:
    def ask(path: str, method: str = "GET", **options: object) -> httpx.Response:
        return httpx.request(
            method,
            f"{base}/debug{path}",
            headers={"Authorization": f"Bearer {token('admin')}"},
            timeout=20,
            **options,  # type: ignore[arg-type]
        )

    return ask


def rates(ask: Callable[..., httpx.Response]) -> set[int]:
    """Of all workers of a host that have a socket by now."""
    found = set()
    for one in ask("/workers").json()["workers"]:
        answer = ask(f"/settings?worker={one['pid']}")
        if answer.status_code == 200:
            found.add(answer.json()["settings"]["cpu_hz"]["value"])
    return found


def said(answer: httpx.Response) -> str:
    return answer.headers.get("X-Stroboscope-Fleet", "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", SERVERS)
def test_a_fleet_of_real_servers_agrees(server: RedisServer, kind: str) -> None:
    """One PUT, one trace, and a Redis that stands, dies and comes back empty,
    whatever serves; nothing of the application waits for it, and no file, socket or
    thread is left of it."""
    command, app = SERVERS[kind]
    environ = {"STROBOSCOPE_REDIS_URL": server.url}
    with (
        serving(command, app, **environ) as (one, _),
        serving(command, app, **environ) as (two, _),
    ):
        a, b = asking(one), asking(two)
        put = a("/settings", "PUT", json={"cpu_hz": 50, "ttl": "60s"})
        wait_until(lambda: rates(b) == {50}, 4.0)
        trace = b("/trace?seconds=0.2")
        wait_until(lambda: a("/trace?seconds=0.1").status_code == 200, 4.0)
        everybody = [
            worker["pid"]
            for ask in (a, b)
            for worker in ask("/workers").json()["workers"]
        ]
        with nothing_leaks(everybody, clients=CLIENTS, connections=1):
            server.pause()
            began = time.monotonic()
            alone = a("/trace?seconds=0.2")
            plain = [httpx.get(f"{one}/hello", timeout=5).elapsed for _ in range(5)]
            took = time.monotonic() - began
            server.go_on()
            wait_until(lambda: said(b("/trace?seconds=0.1")).startswith("held"), 6.0)
            server.kill(loses_data=True)
            wait_until(lambda: said(b("/trace?seconds=0.1")) == "unreachable", 6.0)
            server.start()
            for ask in (a, b):
                wait_until(
                    lambda ask=ask: said(ask("/trace?seconds=0.1")).startswith("held"),
                    10.0,
                )

    assert put.json()["holds_for"] == "all hosts of this service"
    assert trace.headers["X-Stroboscope-Fleet"].startswith("held; fence=")
    assert alone.status_code == 200
    assert took < 0.2 + 0.8 + 1.0
    assert min(plain).total_seconds() < 0.3
