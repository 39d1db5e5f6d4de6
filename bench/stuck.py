"""How soon somebody answers for a service that is stuck: `python -m bench.stuck ROUNDS`.

`/debug/stacks` from a worker whose loop is in a busy loop, by its own socket; from the
other worker while one holds its interpreter in C; and the admin port after its owner was
killed. Real uvicorn, on asyncio and uvloop; every round is shown as milliseconds.
"""

import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/helpers"))

import httpx  # noqa: E402
from servers import UVICORN, serving, token  # noqa: E402

APP = "stalling_site:app"
LOOPS = ("asyncio", "uvloop")
#: How long a loop is kept busy, and an interpreter held, in seconds.
BUSY_S, HELD_S = 1.2, 5
PATIENT = "--timeout-worker-healthcheck 60 "


def ask(path, base="http://localhost", uds=None):
    """An answer of the surface, and the milliseconds it took."""
    transport = httpx.HTTPTransport(uds=uds and str(uds))
    headers = {"Authorization": f"Bearer {token('profile', 'metrics')}"}
    with httpx.Client(transport=transport, timeout=20, headers=headers) as client:
        began = time.perf_counter()
        answer = client.get(f"{base}/debug{path}")
        return answer, (time.perf_counter() - began) * 1000


def begin(url):
    """A request that somebody else waits for."""
    asked = threading.Thread(target=lambda: httpx.get(url, timeout=60))
    asked.start()
    return asked


def sockets(folder, count):
    """Those of so many workers, each with what it leaves while it is stuck."""
    for _ in range(200):
        if len(list(folder.glob("*.samples"))) == count:
            break
        time.sleep(0.05)
    return sorted(folder.glob("*.sock"))


def is_silent(path):
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0.3)
        probe.connect(str(path))
        probe.sendall(b"GET /debug/gc HTTP/1.1\r\nHost: localhost\r\n\r\n")
        try:
            return not probe.recv(1)
        except TimeoutError:
            return True


def busy(loop, rounds):
    """The loop turns in Python; its worker is asked by its own socket."""
    took = []
    with (
        tempfile.TemporaryDirectory() as base,
        serving(UVICORN + f"--loop {loop}", APP, STROBOSCOPE_RUNDIR=base) as (url, _),
    ):
        (own,) = sockets(Path(base) / "shop", 1)
        for _ in range(rounds):
            asked = begin(f"{url}/on-loop/turns?seconds={BUSY_S}")
            time.sleep(0.3)
            answer, ms = ask("/stacks", uds=own)
            assert "    turns " in answer.text, answer.text
            took.append(ms)
            asked.join()
    return took


def held(loop, rounds):
    """C code keeps the interpreter of one of two workers; the other is asked."""
    took = []
    command = UVICORN + f"--loop {loop} --workers 2 " + PATIENT
    with (
        tempfile.TemporaryDirectory() as base,
        serving(command, APP, STROBOSCOPE_RUNDIR=base) as (url, _),
    ):
        both = sockets(Path(base) / "shop", 2)
        for _ in range(rounds):
            asked = begin(f"{url}/on-loop/holds?seconds={HELD_S}")
            time.sleep(1.0)
            other = next(one for one in both if not is_silent(one))
            answer, ms = ask("/stacks", uds=other)
            assert answer.headers["x-stroboscope-workers"] == "1/2", answer.headers
            assert "    holds " in answer.text, answer.text
            took.append(ms)
            asked.join()
    return took


def taken_over(loop, rounds):
    """From SIGKILL of the admin port's owner to the first answer of the next."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        bind = f"127.0.0.1:{probe.getsockname()[1]}"
    took = []
    command = UVICORN + f"--loop {loop} --workers 2 " + PATIENT
    with serving(command, APP, STROBOSCOPE_ADMIN_BIND=bind):
        before = 0
        for _ in range(rounds):
            owner = before = _owner(bind, before, workers=2)
            os.kill(owner, signal.SIGKILL)
            began = time.perf_counter()
            _owner(bind, owner)
            took.append((time.perf_counter() - began) * 1000)
    return took


def _owner(bind, before, workers=1):
    """Who has the port now, and is not the one that was killed."""
    while True:
        try:
            answer, _ = ask("/workers", f"http://{bind}")
            listed = answer.json()["workers"]
        except httpx.HTTPError:
            continue
        for one in listed if len(listed) >= workers else ():
            if one.get("admin") == "open" and one["pid"] != before:
                return one["pid"]
        time.sleep(0.01)


def shown(took):
    """The rounds, rounded, the slowest last."""
    return {"worst": round(max(took)), "rounds": sorted(map(round, took))}


def main(rounds=20):
    kinds = {
        "stacks, busy loop": (busy, rounds),
        "stacks, interpreter held": (held, max(rounds // 4, 1)),
        "admin port taken over": (taken_over, max(rounds // 2, 1)),
    }
    table = {}
    for loop in LOOPS:
        for kind, (measured, count) in kinds.items():
            name = f"{kind}, {loop}"
            table[name] = shown(measured(loop, count))
            print(name, table[name], file=sys.stderr, flush=True)
    return table


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
