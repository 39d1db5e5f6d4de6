"""CPU per request while a profiler samples at 100 Hz, divided by CPU without.

Ours: one server; rounds with and without a profile being taken alternate. Peers cannot
be switched off, so their server alternates with one that has none. CPU of the server's
processes by the scheduler's own account, in nanoseconds; median of the rounds' ratios.
"""

import http.client
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

from stroboscope.auth.keys import generate_key
from stroboscope.auth.tokens import Tokens
from stroboscope.settings import Settings

ROUNDS = 12
REQUESTS = 1500
#: Of `switched`: its pairs, and the requests of one of its rounds.
PAIRS, SHORT = 240, 60
CLIENTS = 2
ROOT = Path(__file__).parents[1]
KEY = generate_key()
#: A request to such an application called without a server, as ASGI has it.
ASKED = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/item/1",
    "raw_path": b"/item/1",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"localhost")],
    "client": ("127.0.0.1", 5000),
    "server": ("127.0.0.1", 80),
}
SERVERS = {
    "uvicorn": ["uvicorn", "--factory", "bench.app:fastapi", "--log-level", "warning"],
    "gthread": ["gunicorn", "bench.app:flask()", "-k", "gthread", "--threads", "4"],
}


@contextmanager
def serving(server, peer="", receiver="", suspended=0):
    """A server's port and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    bind = ["--port", str(port)] if server == "uvicorn" else ["-b", f"127.0.0.1:{port}"]
    process = subprocess.Popen(
        [sys.executable, "-m", *SERVERS[server], *bind],
        cwd=ROOT,
        env={
            **os.environ,
            "STROBOSCOPE_KEYS": KEY,
            "BENCH_PEER": peer,
            "BENCH_RECEIVER": receiver,
            "BENCH_SUSPENDED": str(suspended),
            "DD_TRACE_AGENT_URL": receiver or "http://127.0.0.1:9",
            "DD_TRACE_ENABLED": "false",
            "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "0",
            "DD_REMOTE_CONFIGURATION_ENABLED": "0",
        },
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/item/1").read()
                break
            except OSError:
                time.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait(30)


def cpu_ns(pid):
    """CPU time of a process, its threads, also those that are gone, and its children."""
    of_process = (~pid << 3) | 2  # source: clock_getcpuclockid(3), CPUCLOCK_SCHED
    total = time.clock_gettime_ns(of_process)
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # it ended meanwhile
            for child in (task / "children").read_text().split():
                total += cpu_ns(int(child))
    return total


def requests(port, path="/item/1", count=REQUESTS):
    """Send the round's requests over a few kept connections."""

    def client():
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for _ in range(count // CLIENTS):
            connection.request("GET", path)
            connection.getresponse().read()
        connection.close()

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()


def per_request_us(port, pid, path="/item/1", count=REQUESTS):
    before = cpu_ns(pid)
    requests(port, path, count)
    return (cpu_ns(pid) - before) / count / 1000


def asked(port, method, path, body=None):
    """A request to the surface, by an admin."""
    token = Tokens(Settings(keys=(KEY,), service="bench")).mint(["admin"], 3600)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    url = f"http://127.0.0.1:{port}{path}"
    return urllib.request.Request(url, data, headers, method=method)


def switched(off, on, path="/item/1"):
    """Pairs of one uvicorn process with its knobs off and on: many short rounds in turn,
    whose median is told to a thousandth where that of long ones is not."""

    def round_us(port, pid, knobs):
        urllib.request.urlopen(asked(port, "PUT", "/debug/settings", knobs)).read()
        time.sleep(0.05)  # threads that end now would take what they used with them
        return per_request_us(port, pid, path, SHORT)

    pairs = []
    with serving("uvicorn") as (port, pid):
        requests(port, path)
        for at in range(PAIRS):
            costs = [round_us(port, pid, it) for it in ((off, on) if at % 2 else (on, off))]
            pairs.append(tuple(costs) if at % 2 else tuple(reversed(costs)))
    return pairs


def summary(pairs):
    """The median of the ratios, on through off, and between what it is with 95 %."""
    ratios = sorted(on / off for off, on in pairs)
    reach = round(0.98 * math.sqrt(len(ratios)))  # ranks of 95 % about the median
    middle = len(ratios) // 2
    return {
        "ratio": round(statistics.median(ratios), 4),
        "95 %": [round(ratios[middle + k], 4) for k in (-reach, reach)],
        "us": round(statistics.median(off for off, _ in pairs), 1),
    }


def sampled_us(port, pid, name="profile"):
    """The same with a profile over all of it, its end and encoding included."""
    token = Tokens(Settings(keys=(KEY,), service="bench")).mint(["profile"], 3600)
    took = time.monotonic()
    requests(port)  # how long a round takes, and warm
    took = time.monotonic() - took

    def profile():
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/debug/pprof/{name}?seconds={took:.2f}",
            headers={"Authorization": f"Bearer {token}"},
        )
        urllib.request.urlopen(request).read()

    before = cpu_ns(pid)
    thread = threading.Thread(target=profile)
    thread.start()
    requests(port)
    thread.join()
    return (cpu_ns(pid) - before) / REQUESTS / 1000


def ours(server):
    pairs = []
    with serving(server) as (port, pid):
        requests(port)
        for _ in range(ROUNDS):
            pairs.append((per_request_us(port, pid), sampled_us(port, pid)))
    return pairs


def walled():
    """A wall profile, beside a thousand suspended tasks."""
    pairs = []
    with serving("uvicorn", suspended=1000) as (port, pid):
        requests(port)
        for _ in range(ROUNDS):
            pairs.append((per_request_us(port, pid), sampled_us(port, pid, "wall")))
    return pairs


def theirs(server, peer):
    from bench.receiver import Receiver  # needs what only the peers need

    receiver = Receiver()
    pairs = []
    with (
        serving(server, "none") as (plain, plain_pid),
        serving(server, peer, receiver.address) as (port, pid),
    ):
        for _ in range(ROUNDS):
            pairs.append((per_request_us(plain, plain_pid), per_request_us(port, pid)))
    receiver.close()
    return pairs


def main(server, peer):
    if peer == "wall":
        pairs = walled()
    else:
        pairs = theirs(server, peer) if peer else ours(server)
    ratio = statistics.median(after / before for before, after in pairs)
    best = min(p[1] for p in pairs) / min(p[0] for p in pairs)
    return {
        "server": server,
        "peer": peer or "ours",
        "ratio": round(ratio, 4),
        "ratio of minima": round(best, 4),
        "pairs_us": [[round(x, 1) for x in pair] for pair in pairs],
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")))
