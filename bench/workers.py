"""Several workers, one answer: what it takes longer than it lasts, whether it is the sum
of its parts, and what a worker's listener costs at rest.

The workers are processes that only have their own socket; each burns a known share of a
core under one of two labels.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from stroboscope.auth.keys import generate_key
from stroboscope.auth.tokens import Tokens
from stroboscope.formats.pprof_reader import decode
from stroboscope.settings import Settings

WORKERS, SECONDS, BUSY_SHARE, REST_SECONDS = 8, 10, 0.1, 20
KEY = generate_key()
WORKER = """
import sys, threading, time
from stroboscope import do
from stroboscope.endpoints import Surface
from stroboscope.settings import Settings
surface = Surface(Settings(keys=(sys.argv[1],), service="bench", rundir=sys.argv[2]))
share = float(sys.argv[4])
def burn():
    with do(work=sys.argv[3]):
        while True:
            ends = time.thread_time() + 0.02 * share
            while time.thread_time() < ends:
                pass
            time.sleep(0.02 * (1 - share))
if share:
    threading.Thread(target=burn, daemon=True).start()
if sys.argv[5] == "listens":
    surface.wake()
    while surface.desk.doors.socket_failure:
        time.sleep(0.01)
print("ready", flush=True)
sys.stdin.read()
"""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a worker's socket."""

    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def start(base, label, share, how="listens"):
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, KEY, base, label, str(share), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    worker.stdout.readline()
    return worker


def stop(workers):
    for worker in workers:
        worker.stdin.close()
        worker.wait(20)
        worker.stdout.close()


def cpu_s(pid):
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((t / "schedstat").read_text().split()[0]) for t in threads) / 1e9


def rss_bytes(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def ask(base, pid, path):
    token = Tokens(Settings(keys=(KEY,), service="bench")).mint(["profile"], 120)
    connection = UnixConnection(Path(base) / f"bench/{pid}.sock")
    connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def merged():
    """Milliseconds beyond the capture, and its shares beside the CPU time burnt."""
    with tempfile.TemporaryDirectory() as base:
        workers = [start(base, "ab"[n % 2], BUSY_SHARE) for n in range(WORKERS)]
        try:
            before = {worker.pid: cpu_s(worker.pid) for worker in workers}
            began = time.monotonic()
            path = f"/debug/pprof/profile?seconds={SECONDS}"
            answer, body = ask(base, workers[0].pid, path)
            beyond_ms = (time.monotonic() - began - SECONDS) * 1000
            burnt = {w.pid: cpu_s(w.pid) - before[w.pid] for w in workers}
        finally:
            stop(workers)
    profile = decode(body)
    labels, pids = Counter(), Counter()
    for sample in profile.samples:
        found = dict(sample.labels)
        labels[found.get("work", "")] += sample.values[1]
        pids[int(found["pid"])] += sample.values[1]
    total = sum(labels.values())
    spread = [c for c in profile.comments if c.startswith("workers began")]
    burnt_total = sum(burnt.values())
    return {
        "workers": answer.getheader("X-Stroboscope-Workers"),
        "beyond_ms": round(beyond_ms),
        "spread": spread[0] if spread else "",
        "share_a": round(labels["a"] / total, 3),
        "share_b": round(labels["b"] / total, 3),
        "sampled_s": round(total / 1e9, 2),
        "burnt_s": round(burnt_total, 2),
        "worst_share_error": round(
            max(abs(pids[p] / total - burnt[p] / burnt_total) for p in burnt), 3
        ),
    }


def at_rest():
    """CPU share of one core and bytes that a listener adds to an idle worker."""
    with tempfile.TemporaryDirectory() as base:
        both = [start(base, "", 0, how) for how in ("listens", "does not")]
        try:
            time.sleep(2)
            before = [cpu_s(worker.pid) for worker in both]
            time.sleep(REST_SECONDS)
            used = [cpu_s(w.pid) - b for w, b in zip(both, before, strict=True)]
            resident = [rss_bytes(worker.pid) for worker in both]
        finally:
            stop(both)
    return {
        "cpu_percent_of_a_core": round(100 * (used[0] - used[1]) / REST_SECONDS, 3),
        "rss_mib": round((resident[0] - resident[1]) / 2**20, 2),
    }


if __name__ == "__main__":
    print(json.dumps({"merged": merged(), "at_rest": at_rest()}))
