"""Workers of greenlets, asked for everything by many at once.

gevent keeps the hub of a thread that has ended, and the two files that it has open.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from counting import nothing_leaks
from servers import GUNICORN, serving, token
from workers import wait_until

from stroboscope.endpoints.routes import ROUTES

#: Clients at once, how often each comes, and what it asks for, each beginning elsewhere.
CLIENTS, REQUESTS, ROUNDS = 8, 60, int(os.environ.get("GREENLET_ROUNDS", "1"))
PATHS = (
    *("stacks", "pprof/heap", "tasks", "trace?seconds=0.1"),
    *("pprof/goroutine", "pprof/profile?seconds=0.2", "workers", "metrics"),
)
#: What switches something, and what a scraper keeps on.
KNOBS = {"mutex_fraction": 1, "block_rate_ns": 1, "heap_rate_bytes": 4096}


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the site writes down the hubs that threads were given."""
    return tmp_path_factory.mktemp("hubs")


@pytest.fixture(scope="module")
def base(hubs: Path) -> Iterator[str]:
    command, app = GUNICORN + "-k gevent -w 2", "greenlet_site:app"
    with serving(command, app, HUBS=str(hubs)) as (base, _):
        wait_until(lambda: len(workers(base)) == 2, 20.0)
        yield base


def asking(base: str) -> httpx.Client:
    """A client with a token of its own: each may ask fast."""
    headers = {"Authorization": f"Bearer {token('admin')}"}
    return httpx.Client(base_url=f"{base}/debug/", headers=headers, timeout=30)


def workers(base: str) -> list[int]:
    with asking(base) as client:
        return [one["pid"] for one in client.get("workers").json()["workers"]]


def made(hubs: Path) -> list[str]:
    return [one.read_text() for one in hubs.iterdir()]


def test_whatever_is_asked_gives_no_thread_a_hub(base: str, hubs: Path) -> None:
    """Every endpoint, with every knob on, while the application serves."""
    answers = Counter()
    with asking(base) as client:
        put = client.put("settings", json={**KNOBS, "ttl": "60s"})
        for route in ROUTES:
            path = route.paths[0].lstrip("/").replace("{id}", "1")
            for method, action in route.actions.items():
                for worker in ("all", str(workers(base)[0])):
                    asked = {"worker": worker} if "worker" in action.parameters else {}
                    if "seconds" in action.parameters:
                        asked["seconds"] = "0.05"
                    httpx.get(f"{base}/checkout/3")
                    body = {"path": "/stacks", "ttl": "1m"} if method != "GET" else None
                    one = client.request(method, path, params=asked, json=body)
                    answers[one.status_code] += 1

    assert put.status_code == 200
    assert answers[200] > len(ROUTES)
    assert max(answers) < 500, answers
    assert made(hubs) == []


def test_many_who_ask_at_once_are_all_answered(base: str, hubs: Path) -> None:
    """Each of hundreds of requests ends, and leaves no file, socket or thread open."""

    def asks(first: int) -> Counter[int]:
        got: Counter[int] = Counter()
        with asking(base) as client:
            for at in range(REQUESTS):
                path = PATHS[(first + at) % len(PATHS)]
                got[client.get(path).status_code] += 1
        return got

    processes = workers(base)
    time.sleep(0.5)  # what the last request has begun is over
    with (
        nothing_leaks(processes, clients=1),
        ThreadPoolExecutor(CLIENTS) as pool,
    ):
        answers = sum(pool.map(asks, range(CLIENTS * ROUNDS)), Counter())

    asked = CLIENTS * ROUNDS * REQUESTS
    assert sum(answers.values()) == asked
    # Too many captures at once are told to come again.
    assert answers.keys() <= {200, 429}
    assert answers[200] > asked / 2
    assert workers(base) == processes
    assert made(hubs) == []
