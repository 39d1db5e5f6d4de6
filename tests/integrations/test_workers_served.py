"""Workers of real servers find each other, and answer for each other."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from servers import (
    FASTAPI,
    FLASK,
    GUNICORN,
    HYPERCORN,
    UVICORN,
    serving,
    token,
    under_load,
)

from stroboscope.formats.pprof_reader import decode

SEARCH = ("/search",)
HEADER = "X-Stroboscope-Workers"
_UVICORN = "uvicorn.workers.UvicornWorker"
#: name: (command, application, server as it is listed)
SERVERS = {
    "sync": (GUNICORN + "-k sync -w 3", FLASK, "gunicorn sync"),
    "sync-preload": (GUNICORN + "-k sync -w 3 --preload", FLASK, "gunicorn sync"),
    "gthread": (GUNICORN + "-k gthread --threads 4 -w 3", FLASK, "gunicorn gthread"),
    "gevent": (GUNICORN + "-k gevent -w 3", FLASK, "gunicorn gevent"),
    "gevent-preload": (GUNICORN + "-k gevent -w 3 --preload", FLASK, "gunicorn gevent"),
    "gunicorn-uvicorn": (GUNICORN + f"-k {_UVICORN} -w 3", FASTAPI, "gunicorn uvicorn"),
    "gunicorn-uvicorn-preload": (
        GUNICORN + f"-k {_UVICORN} -w 3 --preload",
        FASTAPI,
        "gunicorn uvicorn",
    ),
    "uvicorn": (UVICORN + "--workers 3", FASTAPI, "uvicorn"),
    "hypercorn": (HYPERCORN + "-w 3", FASTAPI, "hypercorn"),
}


#: What is a living process's own in the run directory.
OWN = r"box-|\d+\."


def headers(*scopes: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(*scopes)}"}


def ask(base: str, path: str, *scopes: str, timeout: float = 30) -> httpx.Response:
    return httpx.get(base + "/debug" + path, headers=headers(*scopes), timeout=timeout)


def meet(base: str, count: int) -> list[int]:
    """The workers, when all of them have begun."""
    for _ in range(100):
        answer = ask(base, "/workers", "metrics")
        if answer.headers[HEADER] == f"{count}/{count}":
            return [entry["pid"] for entry in answer.json()["workers"]]
        time.sleep(0.1)
    raise AssertionError(answer.text)


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
def test_h41_h42_every_server_answers_for_all_workers(
    name: str, tmp_path: Path
) -> None:
    """Whole, then with one stopped, then with one killed, whose place is taken; at the
    end nothing is left in the run directory."""
    command, app, server = SERVERS[name]
    with serving(command, app, STROBOSCOPE_RUNDIR=str(tmp_path)) as (base, started):
        with under_load(base, *[SEARCH] * 4, may_fail=True):
            pids = meet(base, 3)
            whole = ask(base, "/pprof/profile?seconds=1")
        listed = ask(base, "/workers", "metrics").json()["workers"]
        # With one stopped: asked by the socket of another, for a stopped one may
        # accept a connection to the port and never answer.
        os.kill(pids[0], signal.SIGSTOP)
        began = time.monotonic()
        partial = by_socket(tmp_path, pids[1], "/pprof/profile?seconds=1")
        took = time.monotonic() - began
        os.kill(pids[0], signal.SIGCONT)
        if name == "hypercorn":  # all of it ends when one of its workers is killed
            after = pids[1:]
        else:
            os.kill(pids[0], signal.SIGKILL)
            with under_load(base, *[SEARCH] * 4, may_fail=True):
                after = renewed(base, pids[0])

    assert started not in pids
    assert whole.headers[HEADER] == "3/3"
    assert {entry["server"] for entry in listed} == {server}
    assert all(entry["rss_bytes"] > 1e7 and entry["age_s"] > 0 for entry in listed)
    assert partial.headers[HEADER] == "2/3"
    note = f"worker {pids[0]} is stopped"
    assert note in decode(partial.content).comments
    assert took < 1 + 2 + 1
    assert pids[0] not in after
    left = [file for file in tmp_path.rglob("*") if file.suffix in (".sock", ".alive")]
    assert left == []


def by_socket(base: Path, pid: int, path: str) -> httpx.Response:
    transport = httpx.HTTPTransport(uds=str(base / f"shop/{pid}.sock"))
    with httpx.Client(transport=transport, timeout=30) as client:
        return client.get(f"http://localhost/debug{path}", headers=headers())


def renewed(base: str, killed: int) -> list[int]:
    """The workers when one has taken the killed one's place, where a server does so."""
    for _ in range(200):
        try:
            answer = ask(base, "/workers", "metrics", timeout=5)
        except httpx.HTTPError:
            time.sleep(0.1)
            continue
        pids = [entry["pid"] for entry in answer.json()["workers"]]
        # Not before: one that begins does not hear that its server ends.
        if killed not in pids and answer.headers[HEADER] == "3/3":
            return pids
        time.sleep(0.1)
    raise AssertionError("nobody took its place")


@pytest.mark.slow
def test_h41_workers_meet_before_their_first_request(tmp_path: Path) -> None:
    """Under ASGI by their lifespan: all are listed by whoever is asked first."""
    command = UVICORN + "--workers 3"
    with serving(command, FASTAPI, STROBOSCOPE_RUNDIR=str(tmp_path)) as (base, _):
        meet(base, 3)


@pytest.mark.slow
def test_h26_a_sync_worker_is_profiled_while_it_works(tmp_path: Path) -> None:
    """By its socket, longer than its server's timeout; it is the same process after."""
    command = GUNICORN + "-k sync -w 1 -t 3"
    with serving(command, FLASK, STROBOSCOPE_RUNDIR=str(tmp_path)) as (base, _):
        (pid,) = meet(base, 1)
        with under_load(base, SEARCH, may_fail=True):
            answer = by_socket(tmp_path, pid, "/pprof/profile?seconds=5")
        (after,) = meet(base, 1)

    functions = {f.function for s in decode(answer.content).samples for f in s.stack}
    assert "rank_results" in functions
    assert decode(answer.content).duration_ns >= 4.9e9
    assert after == pid


@pytest.mark.slow
def test_h27_the_socket_answers_while_the_loop_is_stuck(tmp_path: Path) -> None:
    """In `while True: pass`: stacks of all threads within a moment."""
    code = tmp_path / "stuck.py"
    code.write_text(
        "import os\n"
        "from stroboscope.integrations.asgi import Stroboscope\n"
        "async def app(scope, receive, send):\n"
        "    if scope['type'] == 'lifespan':\n"
        "        await receive()\n"
        "        await send({'type': 'lifespan.startup.complete'})\n"
        "        await receive()\n"
        "        return\n"
        "    if scope['path'] == '/stuck':\n"
        "        spin_for_ever()\n"
        "def spin_for_ever():\n"
        "    while True: pass\n"
        "app = Stroboscope(app, service='shop')\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    with serving(
        UVICORN, "stuck:app", STROBOSCOPE_RUNDIR=str(tmp_path), PYTHONPATH=path
    ) as (base, pid):
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(base + "/stuck", timeout=0.3)
        took = []
        for _ in range(5):
            began = time.monotonic()
            answer = by_socket(tmp_path, pid, "/stacks")
            took.append(time.monotonic() - began)
        os.kill(pid, signal.SIGKILL)

    assert answer.status_code == 200
    assert "spin_for_ever" in answer.text
    assert min(took) < 0.2, took


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "app", "count"),
    [
        (UVICORN, FASTAPI, 1),
        (UVICORN + "--workers 2", FASTAPI, 2),
        (HYPERCORN + "-w 2", FASTAPI, 2),
        (GUNICORN + "-k gthread --threads 2 -w 2", FLASK, 2),
    ],
)
def test_a_server_that_is_told_to_end_leaves_nobody_for_killed(
    command: str, app: str, count: int, tmp_path: Path
) -> None:
    """By SIGTERM, as at each deployment: neither black boxes nor sockets stay."""
    with serving(command, app, STROBOSCOPE_RUNDIR=str(tmp_path)) as (base, _):
        meet(base, count)
        for _ in range(100):
            boxes = list(tmp_path.rglob("box-*"))
            if len(boxes) == count:
                break
            time.sleep(0.05)

    assert len(boxes) == count
    left = [file.name for file in tmp_path.rglob("*") if re.match(OWN, file.name)]
    assert left == []


@pytest.mark.slow
def test_a_recycled_worker_leaves_nothing(tmp_path: Path) -> None:
    """`--max-requests`: dozens of workers come and go; those that live are listed."""
    command = GUNICORN + "-k gthread --threads 2 -w 2 --max-requests 20"
    with serving(command, FLASK, STROBOSCOPE_RUNDIR=str(tmp_path)) as (base, _):
        seen = set()
        with under_load(base, SEARCH, SEARCH, may_fail=True):
            for _ in range(30):
                try:
                    answer = ask(base, "/workers", "metrics", timeout=5)
                except httpx.HTTPError:
                    continue
                seen |= {entry["pid"] for entry in answer.json()["workers"]}
                time.sleep(0.1)
        names = {file.name for file in (tmp_path / "shop").iterdir()}

    assert len(seen) > 3
    sockets = [name for name in names if name.endswith(".sock")]
    assert len(sockets) <= 3  # one may be on its way out
    assert subprocess.run(["ls", str(tmp_path / "shop")]).returncode == 0
