"""A service that can be made to stand still in every way; served by real servers."""

import asyncio
import ctypes
import math
import os
import re
import threading
import time

from fastapi import FastAPI

from stroboscope.integrations import wsgi
from stroboscope.integrations.fastapi import install

app = FastAPI()
install(app, service="shop", tenant=lambda scope: "acme", tenants=("acme",))
LOCKS = (threading.Lock(), threading.Lock())


def sleeps(seconds: float) -> None:
    time.sleep(seconds)


def turns(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def holds(seconds: float) -> None:
    """Sleep in C that keeps the interpreter: a read that a signal does not end."""
    reading, writing = os.pipe()
    pid = os.posix_spawn(
        "/bin/sleep",
        ["sleep", str(seconds)],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)],
    )
    os.close(writing)
    ctypes.PyDLL(None).read(reading, ctypes.create_string_buffer(8), 8)
    os.close(reading)
    os.waitpid(pid, 0)


def matches(seconds: float) -> None:
    """Burn in C that keeps the interpreter: a pattern that backtracks for ever."""
    began, more = time.thread_time(), 25
    re.match(r"(a|aa)+$", "a" * more + "b")
    # One letter more takes 1.618 times as long: two subproblems, as Fibonacci's rabbits.
    more += round(math.log(seconds / (time.thread_time() - began), 1.618))
    re.match(r"(a|aa)+$", "a" * more + "b")


def deadlocks(seconds: float) -> None:
    """Two threads, two locks, each waits for the other's."""
    first, second = LOCKS

    def other() -> None:
        with second:
            time.sleep(0.1)
            first.acquire(timeout=seconds)

    with first:
        threading.Thread(target=other, name="the-other").start()
        time.sleep(0.1)
        second.acquire(timeout=seconds)


WAYS = {way.__name__: way for way in (sleeps, turns, holds, matches, deadlocks)}


@app.get("/ready")
async def ready() -> int:
    return os.getpid()


@app.get("/waits")
async def waits(seconds: float = 0.6) -> int:
    await asyncio.sleep(seconds)
    return os.getpid()


@app.get("/on-loop/{way}")
async def on_loop(way: str, seconds: float = 0.3) -> int:
    WAYS[way](seconds)
    return os.getpid()


@app.get("/in-pool/{way}")
def in_pool(way: str, seconds: float = 0.3) -> int:
    WAYS[way](seconds)
    return os.getpid()


def plain(environ, start_response):  # type: ignore[no-untyped-def]
    _, way, seconds = ("//" + environ["PATH_INFO"].strip("/")).rsplit("/", 2)
    if way in WAYS:
        WAYS[way](float(seconds))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]


threads = wsgi.Stroboscope(
    plain, service="shop", template=lambda environ: environ["PATH_INFO"]
)
