"""Label accuracy on one asyncio loop: two interleaved requests of known CPU split.

`python bench/accuracy.py [SECONDS]` prints the true and the profiled shares, and the
samples whose label contradicts their stack.
"""

import asyncio
import sys
import time
from collections import Counter

from stroboscope._core import LABELS, LabelCell, engine


def burn_a(n):
    return sum([i * i for i in range(n)])


def burn_b(n):
    return sum([i * i for i in range(n)])


WORK = {"a": (burn_a, 3000), "b": (burn_b, 1000)}


async def request(label, truth):
    cell = LabelCell(label)
    LABELS.set(cell)
    burn, size = WORK[label]
    for _ in range(20):
        began = time.thread_time_ns()
        burn(size)
        truth[label] += time.thread_time_ns() - began
        await asyncio.sleep(0)
    cell.publish()


async def serve(seconds, truth):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.gather(request("a", truth), request("b", truth))


def main(seconds):
    truth, seen, wrong = Counter(), Counter(), 0
    window = engine.open_window(100)
    began = time.process_time_ns()
    asyncio.run(serve(seconds, truth))
    spent = time.process_time_ns() - began
    capture = window.close()
    for stack, serial, count, _ in capture.rows:
        names = {capture.frames[i][1][:6] for i in capture.stacks[stack] if i >= 0}
        burning = names & {"burn_a", "burn_b"}
        name = burning.pop()[-1] if burning else "other"
        chain = capture.chains.get(serial, ())
        seen[name] += count
        if name != "other" and (not chain or chain[-1] != name):
            wrong += count
    total = seen.total()
    for name in "ab":
        true, got = truth[name] / spent, seen[name] / total
        print(f"{name}: true {true:.3f}, profiled {got:.3f}, off {got - true:+.3f}")
    print(f"samples {total}, expected {spent / 1e7:.0f}, contradicting {wrong}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 30)
