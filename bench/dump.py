"""A goroutine answer of 10 000 tasks ten deep and 200 threads: its time, and the
longest pause of the loop meanwhile (median of the rounds, for the machine pauses as
well); beside `asyncio.all_tasks` with `get_stack`.

The loop notes how late it wakes from 0.5 ms sleeps. `busy` is the same beside a loop
that never sleeps, which is the worst case: to take the GIL from it costs 5 ms each time.
"""

import asyncio
import json
import statistics
import threading
import time

from stroboscope._core import engine
from stroboscope.formats import text
from stroboscope.formats.pprof import encode
from stroboscope.profiles.ages import Ages
from stroboscope.profiles.breath import Breath
from stroboscope.profiles.stacks import snapshot, to_profile

TASKS, DEPTH, THREADS, ROUNDS = 10_000, 10, 200, 7


async def deep(left, event):
    if left:
        await deep(left - 1, event)
    else:
        await event.wait()


def ours(loop, ages):
    encode(to_profile(snapshot([loop], ages), time.time_ns()), Breath())


def ours_text(loop, ages):
    text.blocks(snapshot([loop], ages).stacks.blocks(), Breath())


def asyncios(loop, ages):
    del ages
    for task in asyncio.all_tasks(loop):
        task.get_stack()


async def measured(take, ages, busy):
    """Milliseconds the call took on a thread of ours, and the loop's worst pause."""
    loop, done, took = asyncio.get_running_loop(), threading.Event(), []

    def work():
        began = time.perf_counter()
        try:
            take(loop, ages)
        finally:
            took.append(1000 * (time.perf_counter() - began))
            done.set()

    engine.start_thread(work)
    worst = 0.0
    while not done.is_set():
        began = time.perf_counter()
        await asyncio.sleep(0 if busy else 0.0005)
        late = time.perf_counter() - began - (0 if busy else 0.0005)
        worst = max(worst, late)
    return took[0], 1000 * worst


async def rounds():
    event, release = asyncio.Event(), threading.Event()
    threads = [threading.Thread(target=release.wait) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    tasks = [asyncio.create_task(deep(DEPTH - 2, event)) for _ in range(TASKS)]
    await asyncio.sleep(0.5)
    ages, found = Ages(), {}
    for name, take in (("ours", ours), ("text", ours_text), ("asyncio", asyncios)):
        for busy in (False, True):
            results = [await measured(take, ages, busy) for _ in range(ROUNDS)]
            key = f"{name}, busy" if busy else name
            found[f"{key}: ms"] = round(statistics.median(r[0] for r in results), 1)
            found[f"{key}: pause ms"] = round(statistics.median(r[1] for r in results), 1)
    event.set()
    release.set()
    await asyncio.gather(*tasks)
    return found


def greenlets():
    """The same of as many suspended greenlets; the longest pause of another thread."""
    try:
        import greenlet
    except ImportError:
        return {}

    def parked(left):
        if left:
            parked(left - 1)
        else:
            greenlet.getcurrent().parent.switch()

    kept = [greenlet.greenlet(parked) for _ in range(TASKS)]
    for one in kept:
        one.switch(DEPTH - 2)
    results = []
    for _ in range(ROUNDS):
        took = []

        def work(took=took):
            began = time.perf_counter()
            encode(to_profile(snapshot(), time.time_ns()), Breath())
            took.append(1000 * (time.perf_counter() - began))

        engine.start_thread(work)
        worst = 0.0
        while not took:
            began = time.perf_counter()
            time.sleep(0.0005)
            worst = max(worst, time.perf_counter() - began - 0.0005)
        results.append((took[0], 1000 * worst))
    return {
        "greenlets: ms": round(statistics.median(r[0] for r in results), 1),
        "greenlets: pause ms": round(statistics.median(r[1] for r in results), 1),
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(rounds()) | greenlets()))
