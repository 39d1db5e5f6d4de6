"""`stroboscope serve`: all workers of a service, answered for by a process beside them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from asking import GETS
from redis_servers import RedisServer
from servers import FASTAPI, FLASK, GUNICORN, KEY, UVICORN, rundir, serving, token
from workers import wait_until

from stroboscope.formats.pprof_reader import decode

ALL = ("metrics", "profile", "trace", "admin")
#: What else than 200 the contract has: switched off, or an id nobody gave out.
OTHERWISE = {"/pprof/cmdline": 404, "/captures/{id}": 404, "/tasks/{id}": 404}
TIMED = ("/pprof/profile", "/pprof/wall", "/fgprof", "/trace", "/pprof/trace")


@contextmanager
def sidecar(folder: Path, *options: str, **environ: str) -> Iterator[httpx.Client]:
    """A client of a sidecar of the service `shop`, with a token that opens all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "stroboscope.cli", "serve", "--service", "shop"]
    process = subprocess.Popen(
        [*command, "--rundir", folder, "--bind", f"127.0.0.1:{port}", *options],
        env={**os.environ, "STROBOSCOPE_KEYS": KEY, **environ},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "shop at" in process.stdout.readline()
        headers = {"Authorization": f"Bearer {token(*ALL)}"}
        base = f"http://127.0.0.1:{port}/debug"
        with httpx.Client(base_url=base, headers=headers, timeout=20) as client:
            yield client
    finally:
        process.terminate()
        code = process.wait(10)
        if process.stdout is not None:
            process.stdout.close()
    assert code == 0


def pids(client: httpx.Client) -> list[int]:
    return [int(one["pid"]) for one in client.get("/workers").json()["workers"]]


def until_two(client: httpx.Client, public: str) -> list[int]:
    for _ in range(200):
        httpx.get(public + "/")
        if len(found := pids(client)) == 2:
            return found
        time.sleep(0.05)
    raise AssertionError("there are no two workers")


@pytest.mark.parametrize(
    ("command", "app"),
    [(UVICORN + "--workers 2", FASTAPI), (GUNICORN + "--workers 2 -k gevent", FLASK)],
)
def test_it_answers_for_all_workers(command: str, app: str) -> None:
    """Every kind of answer: joined, of one worker, and of the service."""
    folder = rundir()
    with (
        serving(command, app, STROBOSCOPE_RUNDIR=str(folder)) as (public, _),
        sidecar(folder) as ask,
    ):
        found = until_two(ask, public)
        profile = ask.get("/pprof/profile?seconds=1")
        stacks = ask.get("/stacks")
        one = ask.get(f"/stacks?worker={found[0]}")
        trace = ask.get(f"/trace?seconds=0.5&worker={found[1]}")
        by_worker = ask.get("/targets?by=worker").json()
        together = ask.get("/targets").json()
        asked = ask.put("/settings", json={"cpu_hz": 50, "ttl": "1m"})
        time.sleep(1.2)
        hz = [
            ask.get(f"/settings?worker={pid}").json()["settings"]["cpu_hz"]["value"]
            for pid in found
        ]
        capture = ask.get(f"/captures/{profile.headers['X-Stroboscope-Capture']}")
        unknown = ask.get("/stacks?worker=1")

    assert profile.headers["X-Stroboscope-Workers"] == "2/2"
    assert any("workers: 2/2" in one for one in decode(profile.content).comments)
    assert capture.content == profile.content
    assert [f"=== worker {pid} ===" in stacks.text for pid in found] == [True, True]
    assert "=== worker" not in one.text
    assert trace.status_code == 200
    assert [group["labels"]["__param_worker"] for group in by_worker] == list(
        map(str, found)
    )
    assert len(together) == 1
    assert asked.status_code == 200
    assert hz == [50, 50]
    assert unknown.status_code == 404


def test_every_get_answers_with_a_status_of_the_contract() -> None:
    """Each row of the table of routes, by way of the sidecar of two workers."""
    folder, found = rundir(), {}
    with (
        serving(UVICORN + "--workers 2", FASTAPI, STROBOSCOPE_RUNDIR=str(folder)) as (
            public,
            _,
        ),
        sidecar(folder) as ask,
    ):
        until_two(ask, public)
        for path in GETS:
            query = "?seconds=0.2" if path in TIMED else ""
            answer = ask.get(path.replace("{id}", "1-nothing") + query)
            found[path] = (answer.status_code, answer.text[:80])

    expected = {path: OTHERWISE.get(path, 200) for path in GETS}
    assert {path: status for path, (status, _) in found.items()} == expected, found


def test_a_stopped_worker_is_named_and_not_waited_for() -> None:
    """One of two: half the answer, within a second; both: 503, with who and why."""
    folder = rundir()
    with (
        serving(UVICORN + "--workers 2", FASTAPI, STROBOSCOPE_RUNDIR=str(folder)) as (
            public,
            _,
        ),
        sidecar(folder) as ask,
    ):
        found = until_two(ask, public)
        os.kill(found[0], signal.SIGSTOP)
        began = time.monotonic()
        half = ask.get("/pprof/goroutine")
        took_s = time.monotonic() - began
        os.kill(found[1], signal.SIGSTOP)
        none = ask.get("/pprof/goroutine")
        for pid in found:
            os.kill(pid, signal.SIGCONT)
        after = ask.get("/pprof/goroutine")

    assert half.headers["X-Stroboscope-Workers"] == "1/2"
    assert took_s < 1
    assert none.status_code == 503
    assert all(str(pid) in none.text for pid in found)
    assert after.headers["X-Stroboscope-Workers"] == "2/2"


def test_it_is_there_before_and_after_the_workers() -> None:
    """Nobody answers: 503 and a time to try again; it samples nothing itself."""
    folder = rundir()
    with sidecar(folder) as ask:
        before = ask.get("/pprof/profile?seconds=1")
        with serving(UVICORN, FASTAPI, STROBOSCOPE_RUNDIR=str(folder)):
            during = ask.get("/pprof/goroutine")
        after = ask.get("/pprof/goroutine")
        page = ask.get("/", headers={"Accept": "text/html"})
        metrics = ask.get("/metrics")

    assert [before.status_code, during.status_code, after.status_code] == [
        503,
        200,
        503,
    ]
    assert before.headers["Retry-After"] == "1"
    assert page.status_code == 200
    assert metrics.status_code == 503


def test_it_finds_what_killed_workers_left_when_nobody_else_is_there() -> None:
    """The server and both its workers die by SIGKILL: their black boxes are listed and
    given out by a sidecar that begins afterwards, and by the next one after it."""
    folder = rundir()
    with serving(UVICORN + "--workers 2", FASTAPI, STROBOSCOPE_RUNDIR=str(folder)) as (
        public,
        server,
    ):
        with sidecar(folder) as ask:
            workers = until_two(ask, public)
        boxes = [*map("box-{}-*".format, workers)]
        wait_until(lambda: all([*(folder / "shop").glob(box)] for box in boxes), 5)
        for pid in (server, *workers):
            os.kill(pid, signal.SIGKILL)
    found = []
    for _ in range(2):
        with sidecar(folder) as ask:
            wait_until(lambda ask=ask: len(boxes_by(ask)) == 2, 10)
            found.append(boxes_by(ask))
            urls = [one["url"].removeprefix("/debug") for one in found[-1]]
            given = [ask.get(url) for url in urls]

    assert {int(one["parameters"]["pid"]) for one in found[0]} == set(workers)
    assert [one["id"] for one in found[0]] == [one["id"] for one in found[1]]
    assert [answer.status_code for answer in given] == [200, 200]
    assert all(b"was killed" in answer.content for answer in given)


def boxes_by(ask: httpx.Client) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = ask.get("/captures").json()
    return [one for one in listed if one["kind"] == "blackbox"]


def test_a_token_revoked_by_a_worker_is_refused_by_the_sidecar() -> None:
    """Within a second, and the other way round."""
    folder = rundir()
    with (
        serving(UVICORN, FASTAPI, STROBOSCOPE_RUNDIR=str(folder)) as (public, _),
        sidecar(folder) as ask,
    ):
        httpx.get(public + "/")
        assert ask.get("/workers").status_code == 200
        revoked = httpx.post(
            public + "/debug/revoke",
            json={"before": "now"},
            headers=dict(ask.headers),
        )
        time.sleep(1.2)
        refused = ask.get("/workers")

    assert revoked.status_code == 200
    assert refused.status_code == 401


def test_a_taken_address_is_said_at_start(tmp_path: Path) -> None:
    """Exit code 1 and the reason, instead of a sidecar nobody can reach."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-m", "stroboscope.cli", "serve", "--bind", bind],
            env={**os.environ, "STROBOSCOPE_KEYS": KEY},
            capture_output=True,
            text=True,
            timeout=30,
        )

    assert done.returncode == 1
    assert bind in done.stderr


def test_real_pprof_reads_the_sidecar(go_pprof: list[str], tmp_path: Path) -> None:
    """`go tool pprof` with the address alone asks for the merged CPU profile."""
    folder = rundir()
    with (
        serving(UVICORN + "--workers 2", FASTAPI, STROBOSCOPE_RUNDIR=str(folder)) as (
            public,
            _,
        ),
        sidecar(folder) as ask,
    ):
        until_two(ask, public)
        named = f"http://x:{token('profile')}@"
        url = str(ask.base_url).replace("http://", named).rstrip("/")
        raw = subprocess.run(
            [*go_pprof, "-raw", "-seconds=1", url + "/pprof/profile"],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PPROF_TMPDIR": str(tmp_path)},
        )

    assert raw.returncode == 0, raw.stderr
    assert "workers: 2/2" in raw.stdout


def test_targets_are_what_service_discovery_reads() -> None:
    """Lists of groups, each with string targets and string labels."""
    folder = rundir()
    with (
        serving(UVICORN, FASTAPI, STROBOSCOPE_RUNDIR=str(folder)) as (public, _),
        sidecar(folder) as ask,
    ):
        httpx.get(public + "/")
        found = ask.get("/targets?by=worker")

    groups = json.loads(found.content)
    assert found.headers["Content-Type"] == "application/json"
    assert groups
    for group in groups:
        assert set(group) == {"targets", "labels"}
        assert all(isinstance(one, str) for one in group["targets"])
        assert all(isinstance(one, str) for one in group["labels"].values())


def test_h19_a_forensic_profile_by_the_sidecar_is_one_for_all(
    server: RedisServer,
) -> None:
    """Of the workers, of who asks the sidecar, and of other hosts of a fleet."""
    folder, other = rundir(), rundir()
    environ = {"STROBOSCOPE_REDIS_URL": server.url}
    path = "/pprof/profile?forensic=1&seconds="
    with (
        serving(UVICORN, FASTAPI, STROBOSCOPE_RUNDIR=str(folder), **environ) as (
            one,
            _,
        ),
        serving(UVICORN, FASTAPI, STROBOSCOPE_RUNDIR=str(other), **environ) as (two, _),
        sidecar(folder, **environ) as ask,
    ):
        httpx.get(one + "/")
        bearer = {"Authorization": f"Bearer {token(*ALL)}"}
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(ask.get, path + "1.5")
            wait_until(lambda: server.run("EXISTS", "stroboscope:{shop/}:lease"), 5.0)
            refused = [
                ask.get(path + "1").status_code,
                *(
                    httpx.get(f"{base}/debug{path}1", headers=bearer).status_code
                    for base in (one, two)
                ),
            ]
            answer = first.result()
        after = ask.get(path + "0.1")

    assert refused == [429, 429, 429]
    assert (answer.status_code, answer.headers["X-Stroboscope-Fleet"]) == (
        200,
        "held; fence=1",
    )
    assert after.headers["X-Stroboscope-Fleet"] == "held; fence=2"
