"""What a capture costs the server it is taken of, and viztracer on the same server.

A FastAPI application under uvicorn with ten regions a request, a steady rate of requests,
ten seconds: CPU per request with and without a capture over all of it, alternating; the
longest pause of the loop, from a clock that ticks on it; the bytes. viztracer cannot be
switched from outside, so its server alternates with one that has none.
"""

import http.client
import json
import os
import statistics
import sys
import threading
import time
import urllib.request
from pathlib import Path

from bench.requests import serving
from bench.trace import asked, ratio

RATE, SECONDS, CLIENTS, ROUNDS = 1000, 10, 8, 3
#: Of each kind of capture, whose longest pause of the loop is told from the machine's.
PAUSE_ROUNDS, PAUSE_SECONDS = 7, 2
PATH = "/quick/1"


def cpu_ns(pid):
    """CPU time of a process, threads that have ended included; see proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 10**9 // os.sysconf("SC_CLK_TCK")


def steady(port, seconds=SECONDS):
    """Send RATE requests a second; how many were answered."""
    began = time.monotonic()
    done = [0] * CLIENTS

    def client(at):
        connection = http.client.HTTPConnection("127.0.0.1", port)
        number = 0
        while True:
            due = began + (at + number * CLIENTS) / RATE
            if due > began + seconds or time.monotonic() > began + seconds:
                break
            time.sleep(max(0, due - time.monotonic()))
            connection.request("GET", PATH)
            connection.getresponse().read()
            number += 1
        done[at] = number
        connection.close()

    clients = [threading.Thread(target=client, args=(at,)) for at in range(CLIENTS)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    return sum(done)


def pause_ms(port):
    """The longest pause since it was asked last."""
    url = f"http://127.0.0.1:{port}/pause"
    return float(urllib.request.urlopen(url).read())


def measured(port, pid):
    pause_ms(port)
    before = cpu_ns(pid)
    count = steady(port)
    return (cpu_ns(pid) - before) / count / 1000, count / SECONDS, pause_ms(port)


def ours():
    pairs, rates, pauses, sizes = [], [], [], []
    with serving("uvicorn") as (port, pid):
        steady(port, 2)
        for _ in range(ROUNDS):
            without, _, rest_ms = measured(port, pid)
            request = asked(port, "GET", f"/debug/trace?seconds={SECONDS}")
            taking = threading.Thread(
                target=lambda request=request: sizes.append(
                    len(urllib.request.urlopen(request).read())
                )
            )
            taking.start()
            within, rate, during_ms = measured(port, pid)
            taking.join()
            after_ms = pause_ms(port)
            pairs.append((without, within))
            rates.append(rate)
            pauses.append((rest_ms, during_ms, after_ms))
    return {
        "ratio": ratio(pairs),
        "rate": round(min(rates)),
        "bytes": max(sizes),
        "pause at rest, median ms": statistics.median(p[0] for p in pauses),
        "pause in it, median ms": statistics.median(p[1] for p in pauses),
        "pause after it, median ms": statistics.median(p[2] for p in pauses),
        "pairs_us": pairs,
    }


def pauses():
    """The loop's longest pause at rest and in each kind of capture, in turn."""
    kinds = {
        "rest": "",
        "cpu": f"/debug/pprof/profile?seconds={PAUSE_SECONDS}",
        "wall": f"/debug/pprof/wall?seconds={PAUSE_SECONDS}",
        "trace": f"/debug/trace?seconds={PAUSE_SECONDS}",
    }
    found = {kind: [] for kind in kinds}
    with serving("uvicorn") as (port, _):
        steady(port, 2)
        for _ in range(PAUSE_ROUNDS):
            for kind, path in kinds.items():
                request = asked(port, "GET", path) if path else None
                taking = threading.Thread(
                    target=lambda request=request: request
                    and urllib.request.urlopen(request).read()
                )
                pause_ms(port)
                taking.start()
                steady(port, PAUSE_SECONDS + 1)
                taking.join()
                found[kind].append(pause_ms(port))
    return {
        **{f"{kind}, median ms": round(statistics.median(all), 2) for kind, all in found.items()},
        "ms": found,
    }


def viztracer():
    pairs, pauses = [], []
    with serving("uvicorn", "none") as (plain, plain_pid), serving("uvicorn", "viztracer") as (
        port,
        pid,
    ):
        steady(plain, 2)
        steady(port, 2)
        for _ in range(ROUNDS):
            without, *_ = measured(plain, plain_pid)
            within, _, during_ms = measured(port, pid)
            pairs.append((without, within))
            pauses.append(during_ms)
    return {"ratio": ratio(pairs), "pause in it, median ms": statistics.median(pauses),
            "pairs_us": pairs}


if __name__ == "__main__":
    print(json.dumps({"ours": ours, "viztracer": viztracer, "pauses": pauses}[sys.argv[1]]()))
