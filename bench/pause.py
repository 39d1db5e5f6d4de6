"""Longest pause of a busy event loop while a big profile is read and encoded.

A loop works 1 ms, sleeps 0.5 ms and notes how late it wakes. Spells in which 50 000
samples of 40 frames are turned into a profile and encoded alternate with spells of the
same length at rest; the machine itself pauses, so the two are compared.
"""

import asyncio
import json
import statistics
import threading
import time

from stroboscope._core import Capture, engine
from stroboscope.formats.pprof import encode, prune
from stroboscope.labels import label_set
from stroboscope.profiles.breath import Breath
from stroboscope.profiles.cpu import to_profile

ROUNDS = 8
SAMPLES = 50_000


def big_capture():
    frames = [("app.py", f"f{i}", i, i + 1) for i in range(2000)]
    stacks = [
        tuple((i * 7 + d * 13) % 2000 for d in range(40)) for i in range(SAMPLES)
    ]
    rows = [(i, i + 1, 1, 10_000_000) for i in range(SAMPLES)]
    sets = [label_set({"endpoint": f"/e{i}"}) for i in range(200)]
    same = [(one,) for one in sets]  # as the engine hands them out
    chains = {i + 1: same[i % 200] for i in range(SAMPLES)}
    return Capture(0, 60 * 10**9, 10**7, frames, stacks, rows, chains, [])


async def longest_delay(until):
    """Milliseconds the loop woke too late, at worst."""
    worst = 0.0
    while not until():
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass
        began = time.perf_counter()
        await asyncio.sleep(0.0005)
        worst = max(worst, time.perf_counter() - began - 0.0005)
    return worst * 1000


async def rounds():
    capture = big_capture()
    rest, busy, took = [], [], 0.0
    for _ in range(ROUNDS):
        done = threading.Event()

        def work(done=done):
            breathe = Breath()
            encode(prune(to_profile(capture), breathe=breathe), breathe)
            done.set()

        began = time.monotonic()
        engine.start_thread(work)
        busy.append(await longest_delay(done.is_set))
        took = time.monotonic() - began
        end = time.monotonic() + took
        rest.append(await longest_delay(lambda end=end: time.monotonic() > end))
    return {
        "at rest, median ms": round(statistics.median(rest), 2),
        "encoding, median ms": round(statistics.median(busy), 2),
        "at rest, worst ms": round(max(rest), 2),
        "encoding, worst ms": round(max(busy), 2),
        "encoding takes s": round(took, 1),
    }


def main():
    return asyncio.run(rounds())


if __name__ == "__main__":
    print(json.dumps(main()))
