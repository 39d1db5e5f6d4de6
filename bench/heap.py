"""What the heap profile costs and how true it is, beside other memory profilers.

`python -m bench.heap` prints a table and keeps the raw data. Loops: the same work with
and without, interleaved in one process, CPU time, minimum of the rounds. Requests: a
FastAPI application called in one thread, in spells of some 20 ms, off and on in turn,
CPU time, median of the ratios; and a uvicorn process, by the scheduler's account.
Truth: what three endpoints hold, known by construction, against what the profile says.
"""

import contextlib
import gc
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from bench.requests import summary, switched

RESULTS = Path(__file__).parent / "results"
RATE = 524_288
ROUNDS = 15
PEERS = ("ours", "tracemalloc", "memray", "ddtrace")
MIB = 1 << 20


# ---- pure allocation loops ----------------------------------------------------------
def blocks():
    """Blocks of 73 bytes, a thousand alive at a time."""
    for _ in range(200):
        [bytes(40) for _ in range(1000)]


def buffers():
    """An object and its buffer, freed at once."""
    for _ in range(100_000):
        bytearray(100)


class Thing:
    pass


def objects():
    """Instances with a dictionary."""
    for _ in range(100_000):
        Thing().x = 1


LOOPS = (blocks, buffers, objects)


@contextmanager
def ours():
    from stroboscope.profiles import heap

    heap.set_rate(RATE)
    try:
        yield
    finally:
        heap.set_rate(0)


@contextmanager
def traced():
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@contextmanager
def memray():
    import memray

    with tempfile.TemporaryDirectory() as folder:
        file = memray.FileDestination(Path(folder) / "m", overwrite=True)
        with memray.Tracker(destination=file, trace_python_allocators=True):
            yield


@contextmanager
def ddtrace():
    from ddtrace.profiling.collector.memalloc import MemoryCollector

    collector = MemoryCollector(heap_sample_size=RATE)
    collector.start()
    try:
        yield
    finally:
        collector.stop()


WAYS = {"ours": ours, "tracemalloc": traced, "memray": memray, "ddtrace": ddtrace}


def cpu_s(work):
    began = time.process_time()
    work()
    return time.process_time() - began


def loops(peer):
    rounds = ROUNDS if peer == "ours" else 5
    found = {}
    for work in LOOPS:
        pairs = []
        for _ in range(rounds):
            gc.collect()
            plain = cpu_s(work)
            with WAYS[peer]():
                pairs.append((plain, cpu_s(work)))
        best = min(p[1] for p in pairs) / min(p[0] for p in pairs)
        found[work.__name__] = round(best, 3)
    return found


# ---- requests -----------------------------------------------------------------------
SPELL, SPELLS = 20, 100


def requests():
    """CPU of a thread that answers requests in short spells, off and on in turn.

    Beside it spells that are both off: what the machine alone makes of the ratio.
    """
    import asyncio

    from bench.app import fastapi
    from bench.requests import ASKED, KEY
    from stroboscope.profiles import heap

    os.environ["STROBOSCOPE_KEYS"] = KEY
    app = fastapi()

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        pass

    async def spell(rate):
        heap.set_rate(rate)
        await app({**ASKED, "state": {}}, receive, send)
        began = time.thread_time()
        for _ in range(SPELL):
            await app({**ASKED, "state": {}}, receive, send)
        return (time.thread_time() - began) / SPELL * 1e6

    async def both(rate, at):
        """Either first in turn: what a spell does to the next is shared."""
        found = {}
        for is_on in (False, True) if at % 2 else (True, False):
            found[is_on] = await spell(rate if is_on else 0)
        return found[False], found[True]

    async def main():
        for _ in range(10):
            await spell(0)
        pairs = {"heap": [], "fast path alone": [], "both off": []}
        for at in range(SPELLS):
            pairs["heap"].append(await both(RATE, at))
            pairs["fast path alone"].append(await both(1 << 40, at))
            pairs["both off"].append(await both(0, at))
        return pairs

    return {name: summary(pairs) for name, pairs in asyncio.run(main()).items()}


# ---- served -------------------------------------------------------------------------
def served():
    """CPU a request of a uvicorn process, rounds with the knob at zero and not in turn."""
    return summary(switched({"heap_rate_bytes": 0}, {"heap_rate_bytes": RATE}))


# ---- truth --------------------------------------------------------------------------
TRUTH, BLOCK = {"a": 64 * MIB, "b": 64 * MIB, "c": 64 * MIB}, 2048


def truth():
    from stroboscope import do
    from stroboscope.profiles import heap

    heap.set_rate(RATE)
    errors = {name: [] for name in TRUTH}
    for _ in range(20):
        kept = []
        for part in range(16):
            for name, total in TRUTH.items():
                with do(endpoint=name):
                    n = total // 16 // BLOCK
                    kept.append([bytes(BLOCK - 41) for _ in range(n)])
        found = Counter()
        for sample in heap.collect_heap().samples:
            found[dict(sample.labels).get("endpoint")] += sample.values[3]
        for name, total in TRUTH.items():
            errors[name].append(found[name] / total - 1)
        del kept
    heap.set_rate(0)
    p = -math.expm1(-BLOCK / RATE)
    every = [e for some in errors.values() for e in some]
    return {
        "mean error %": {n: round(100 * statistics.fmean(e), 1) for n, e in errors.items()},
        "deviation of one %": round(100 * statistics.pstdev(every), 1),
        "deviation by chance %": round(100 * math.sqrt((1 - p) / p / (64 * MIB / BLOCK)), 1),
        "rounds": len(errors["a"]),
    }


# ---- pause --------------------------------------------------------------------------
def pause():
    """The longest wait of an event loop while a heap profile of many rows is made."""
    import asyncio

    from stroboscope._core import engine
    from stroboscope.formats.pprof import encode, prune
    from stroboscope.profiles import heap
    from stroboscope.profiles.breath import Breath

    heap.set_rate(1)
    space = {}
    lines = "\n".join(f"    if n == {i}: return bytearray(50)" for i in range(400))
    exec(f"def leaf(n):\n{lines}\ndef mid(n, d):\n    return mid(n, d - 1) if d else leaf(n)", space)
    kept = [space["mid"](n, d) for d in range(100) for n in range(400)]
    more = [bytearray(1) for _ in range(450_000)]
    heap.set_rate(RATE)  # what was followed stays so; the loop works as it would
    live = sys.modules["stroboscope._core._native"].heap_info()["live"]

    async def longest(work):
        done = []
        if work:
            engine.start_thread(lambda: (work(), done.append(1)))
        worst, end = 0.0, time.monotonic() + 1
        while time.monotonic() < end or (work and not done):
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - before - 0.001)
        return worst * 1000

    def work():
        breathe = Breath()
        encode(prune(heap.collect_heap(), breathe=breathe), breathe)

    rows = len(heap.collect_heap().samples)
    gc.freeze()
    rest = [asyncio.run(longest(None)) for _ in range(7)]
    busy = [asyncio.run(longest(work)) for _ in range(7)]
    del kept, more
    return {
        "rows": rows,
        "live": live,
        "at rest, median ms": round(statistics.median(rest), 2),
        "reading, median ms": round(statistics.median(busy), 2),
        "all ms": [round(x, 2) for x in busy],
    }


PARTS = {
    "loops": loops,
    "requests": requests,
    "served": served,
    "truth": truth,
    "pause": pause,
}


def run(part, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "bench.heap", part, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {"failed": done.stderr.strip().splitlines()[-1:]}


def table(raw):
    def ratio(peer, loop):
        return str(raw["loops"][peer].get(loop, "did not run"))

    rows = [
        (f"loop of {w.__name__}", "<= 1.10", *(ratio(p, w.__name__) for p in PEERS))
        for w in LOOPS
    ]
    truly, stopped = raw["truth"], raw["pause"]
    mean = ", ".join(f"{e:+.1f} %" for e in truly["mean error %"].values())
    requested = "; ".join(
        f"{name} {one['ratio']} ({one['95 %'][0]} to {one['95 %'][1]})"
        for name, one in {**raw["requests"], "uvicorn's": raw["served"]}.items()
    )
    rows += [
        ("CPU a request, FastAPI", "<= 1.02", requested),
        (
            f"live bytes of 3 endpoints, 64 MiB each, mean of {truly['rounds']}",
            "10 %",
            f"{mean}; one alone {truly['deviation of one %']} %, by chance "
            f"{truly['deviation by chance %']} %",
        ),
        (
            f"loop's longest pause, {stopped['rows']} rows, {stopped['live']} live",
            "<= 5 ms",
            f"{stopped['reading, median ms']} ms; at rest "
            f"{stopped['at rest, median ms']}",
        ),
    ]
    lines = ["| measure | target | stroboscope | tracemalloc | memray | ddtrace memory |"]
    lines += ["|---" * 6 + "|"]
    lines += [f"| {' | '.join((*row, *[''] * (6 - len(row))))} |" for row in rows]
    return "\n".join(lines)


def main():
    raw = {"loops": {peer: run("loops", peer) for peer in PEERS}}
    raw |= {part: run(part) for part in PARTS if part != "loops"}
    raw["python"] = sys.version.split()[0]
    for name in ("memray", "ddtrace"):
        with contextlib.suppress(ImportError):
            raw[name] = getattr(importlib.import_module(name), "__version__", "?")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "heap.json").write_text(json.dumps(raw, indent=1) + "\n")
    shown = table(raw)
    (RESULTS / "heap.md").write_text(shown + "\n")
    print(shown)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(PARTS[sys.argv[1]](*sys.argv[2:])))
    else:
        main()
