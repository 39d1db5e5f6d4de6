"""A service whose loop knows how long it stood still, beside threads and tasks."""

import asyncio
import os
import threading
import time

from fastapi import FastAPI

import stroboscope as strobe
from stroboscope.integrations.fastapi import install

_TICK_S = 0.001
#: What stands around while it is profiled, and what the collector has to walk.
THREADS, TASKS, OBJECTS = 30, 200, 200_000
kept: list[object] = [[number] for number in range(OBJECTS)]


class Clock:
    """Ticks on the loop; the longest time between two ticks, beyond what was meant.

    Less what the kernel let the thread wait for a processor: other people's work.
    """

    def __init__(self) -> None:
        self._file = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self._last_s = self._now_s()
        self._longest_s = 0.0

    def tick(self) -> None:
        now_s = self._now_s()
        self._longest_s = max(self._longest_s, now_s - self._last_s - _TICK_S)
        self._last_s = now_s
        asyncio.get_running_loop().call_later(_TICK_S, self.tick)

    def longest_ms(self) -> float:
        """Since it was asked last."""
        longest_s, self._longest_s = self._longest_s, 0.0
        return longest_s * 1000

    def _now_s(self) -> float:
        waited_ns = int(os.pread(self._file, 100, 0).split()[1])
        return time.monotonic() - waited_ns / 1e9


app = FastAPI()


@app.on_event("startup")
async def begin() -> None:
    kept.append(clock := Clock())
    clock.tick()
    forever = threading.Event()
    for _ in range(THREADS):
        threading.Thread(target=forever.wait, daemon=True).start()
    kept.extend(asyncio.create_task(_suspended(20)) for _ in range(TASKS))


async def _suspended(depth: int) -> None:
    if depth:
        await _suspended(depth - 1)
    await asyncio.get_running_loop().create_future()


@app.get("/item/{item}")
async def work(item: int) -> dict[str, int]:
    for number in range(10):
        with strobe.region(f"part {number}"):
            item += sum(range(2000))
    await asyncio.sleep(0)
    return {"item": item}


@app.get("/pause")
async def pause() -> float:
    (clock,) = (one for one in kept[OBJECTS:] if isinstance(one, Clock))
    return clock.longest_ms()


install(app, service="shop")
