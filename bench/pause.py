"""Longest pause of an event loop while 50 000 samples are read, turned and encoded.

Prints the loop's longest delay at rest and during the encoding, in milliseconds.
"""

import asyncio
import threading
import time

from stroboscope._core import Capture, engine
from stroboscope.formats.pprof import encode
from stroboscope.labels import label_set
from stroboscope.profiles.cpu import breathe, to_profile


def big_capture():
    frames = [("app.py", f"f{i}", i, i + 1) for i in range(2000)]
    stacks = [tuple((i * 7 + d * 13) % 2000 for d in range(40)) for i in range(50_000)]
    rows = [(i, i + 1, 1, 10_000_000) for i in range(50_000)]
    sets = [label_set({"endpoint": f"/e{i}"}) for i in range(200)]
    chains = {i + 1: (sets[i % 200],) for i in range(50_000)}
    return Capture(0, 60 * 10**9, 10**7, frames, stacks, rows, chains, [])


async def longest_delay(until):
    worst = 0.0
    while not until():
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        worst = max(worst, time.perf_counter() - began - 0.001)
    return worst * 1000


async def main():
    end = time.monotonic() + 2
    print(f"at rest {await longest_delay(lambda: time.monotonic() > end):.2f} ms")
    capture = big_capture()
    done = threading.Event()
    sizes = []

    def work():
        began = time.monotonic()
        sizes.append(len(encode(to_profile(capture), breathe)))
        sizes.append(time.monotonic() - began)
        done.set()

    engine.start_thread(work)
    worst = await longest_delay(done.is_set)
    print(f"encoding {worst:.2f} ms; {sizes[0]} bytes in {sizes[1]:.1f} s")


if __name__ == "__main__":
    asyncio.run(main())
