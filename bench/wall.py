"""CPU a request costs more while a wall profile is taken at 100 Hz beside 1000
suspended tasks.

A FastAPI application is called on one loop in spells of some 100 ms, off and on in
turn; CPU of the whole process, so that the ticker's own is in it; median of the pairs'
ratios with its 95 %. Beside it pairs that are both off, and pairs with the shared CPU
sampler alone, which a wall profile has in it.
"""

import asyncio
import contextlib
import gc
import json
import os
import sys
import time

from bench.requests import ASKED, KEY, summary

TASKS, DEPTH, HZ = 1000, 10, 100
SPELL, SETTLING, PAIRS = 100, 40, 60


async def deep(left, event):
    if left:
        await deep(left - 1, event)
    else:
        await event.wait()


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message):
    pass


@contextlib.contextmanager
def off(loop):
    yield


@contextlib.contextmanager
def cpu(loop):
    from stroboscope._core import engine

    window = engine.open_window(HZ)
    try:
        yield
    finally:
        window.close()


@contextlib.contextmanager
def wall(loop):
    from stroboscope.profiles.wall import _ticker

    with cpu(loop):
        handle = _ticker.open(lambda: [loop])
        try:
            yield
        finally:
            _ticker.close(handle)


async def cost_us(app, way, asked=ASKED):
    """CPU of the process for each request of a spell.

    Before it threads begin, or those of the spell before end: once in a profile of any
    length, and beside a busy loop that takes some of the interpreter's 5 ms each. Without
    a pause, after which a processor is faster for a while.
    """
    with way(asyncio.get_running_loop()):
        for _ in range(SETTLING):
            await app({**asked, "state": {}}, receive, send)
            await asyncio.sleep(0)
        began = time.process_time()
        for _ in range(SPELL):
            await app({**asked, "state": {}}, receive, send)
            await asyncio.sleep(0)
        return (time.process_time() - began) / SPELL * 1e6


async def rounds(pairs):
    from bench.app import fastapi

    app, event = fastapi(), asyncio.Event()
    tasks = [asyncio.create_task(deep(DEPTH, event)) for _ in range(TASKS)]
    await asyncio.sleep(0)
    gc.freeze()  # a full collection now and then would be most of a spell's noise
    for _ in range(5):
        await cost_us(app, off)
    found = {"wall": [], "cpu alone": [], "both off": []}
    ways = {"wall": wall, "cpu alone": cpu, "both off": off}
    for at in range(pairs):
        for name, way in ways.items():
            order = (off, way) if at % 2 else (way, off)
            costs = [await cost_us(app, one) for one in order]
            found[name].append(tuple(costs) if at % 2 else tuple(reversed(costs)))
    event.set()
    await asyncio.gather(*tasks)
    return {name: summary(found[name]) for name in found}


if __name__ == "__main__":
    os.environ["STROBOSCOPE_KEYS"] = KEY
    PAIRS = int(sys.argv[1]) if sys.argv[1:] else PAIRS
    print(json.dumps(asyncio.run(rounds(PAIRS))))
