"""Clients that never end cost one connection and nothing else."""

import http.client
import resource
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fronts import (
    bearer,
)
from servers import FASTAPI, HYPERCORN, UVICORN, serving

#: Rounds of a measurement, and measurements of which one has to hold: what else runs
#: on the machine moves a p99 by more than we may, and the servers read the bytes that
#: trickle in all at once, once a second, which alone takes them 20 to 40 ms.
ROUNDS, TRIES = 2, 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    # More wait to be accepted at once than hypercorn lets wait by itself.
    [UVICORN, HYPERCORN + "--backlog 2048"],
    ids=["uvicorn", "hypercorn"],
)
def test_h25_a_thousand_slow_connections_cost_nobody(command: str) -> None:
    """Half-open, sending or reading a byte a second: the application's p99 stays in
    its noise, a second capture succeeds, memory is bounded."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        with serving(command, FASTAPI) as (base, pid):
            latencies_s(base, 100)
            before_kb = resident_kb(pid)
            for _ in range(TRIES):
                calm, busy, most_kb = measured(base, pid)
                print(
                    f"p50 {statistics.median(calm) * 1e3:.2f}"
                    f" {statistics.median(busy) * 1e3:.2f},"
                    f" p99 {p99(calm) * 1e3:.2f} {p99(busy) * 1e3:.2f} ms,"
                    f" {most_kb - before_kb} kB"
                )
                if p99(busy) < 1.5 * p99(calm) + 0.003:
                    break
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert p99(busy) < 1.5 * p99(calm) + 0.003
    assert statistics.median(busy) < 1.5 * statistics.median(calm) + 0.001
    assert most_kb - before_kb < 60_000


def measured(base: str, pid: int) -> tuple[list[float], list[float], int]:
    """Seconds of requests without and with them, in turn; the most memory it took."""
    calm: list[float] = []
    busy: list[float] = []
    most_kb = 0
    for _ in range(ROUNDS):
        calm += latencies_s(base, 300)
        with a_thousand_slow_ones(base):
            settle(base)
            busy += latencies_s(base, 300)
            second = httpx.get(
                base + "/debug/pprof/profile?seconds=0.2", headers=bearer(), timeout=20
            )
            assert second.status_code == 200
            most_kb = max(most_kb, resident_kb(pid))
        settle(base)
    return calm, busy, most_kb


def settle(base: str) -> None:
    """Wait until the server has taken all connections in: that is work of its own."""
    calm = 0
    deadline_s = time.monotonic() + 10
    while calm < 20 and time.monotonic() < deadline_s:
        (took_s,) = latencies_s(base, 1)
        calm = calm + 1 if took_s < 0.02 else 0
        time.sleep(0.01)


def p99(values: list[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]


def latencies_s(base: str, count: int) -> list[float]:
    connection = http.client.HTTPConnection(base.removeprefix("http://"), timeout=20)
    took = []
    for _ in range(count):
        began = time.perf_counter()
        connection.request("GET", "/search")
        connection.getresponse().read()
        took.append(time.perf_counter() - began)
    connection.close()
    return took


@contextmanager
def a_thousand_slow_ones(base: str) -> Iterator[None]:
    address = urlsplit(base)
    auth = bearer()["Authorization"]
    half = "GET /debug/pprof/profile HTTP/1.1\r\nHost: localhost\r\nX-A: "
    anonymous = "GET /debug/stacks HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = (
        "PUT /debug/settings HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: 1000\r\n"
        f"Authorization: {auth}\r\n\r\n"
    )
    reads = f"GET /debug/stacks HTTP/1.1\r\nHost: localhost\r\nAuthorization: {auth}\r\n\r\n"
    texts = [half] * 600 + [anonymous] * 250 + [body] * 100 + [reads] * 50
    stop = threading.Event()
    with ExitStack() as stack:
        clients = []
        for text in texts:
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            client.connect((address.hostname, address.port))
            client.sendall(text.encode())
            clients.append((client, text))

        def trickle() -> None:
            while not stop.wait(1.0):
                for client, text in clients:
                    try:
                        if text in (half, body):
                            client.send(b"1")
                        else:
                            client.recv(1, socket.MSG_DONTWAIT)
                    except OSError:
                        pass

        trickling = threading.Thread(target=trickle)
        trickling.start()
        try:
            yield
        finally:
            stop.set()
            trickling.join()


def resident_kb(pid: int) -> int:
    """Of a process and those it started."""
    status = Path(f"/proc/{pid}/status").read_text()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = int(status.split("VmRSS:")[1].split()[0])
    return own + sum(resident_kb(int(child)) for child in children)
