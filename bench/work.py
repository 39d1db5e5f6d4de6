"""Two kinds of requests with known CPU, and every way their work can move.

A way is called with `tag`, which labels a block, and a number of seconds. What burns CPU
is named after its request, so a stack tells the truth about a label.
"""

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

SIZES = {"a": 30_000, "b": 10_000}
truth = Counter()
_lock = threading.Lock()


def burn_a(n):
    return sum([i * i for i in range(n)])


def burn_b(n):
    return sum([i * i for i in range(n)])


BURN = {"a": burn_a, "b": burn_b}


def burn(label):
    began = time.thread_time_ns()
    BURN[label](SIZES[label])
    with _lock:
        truth[label] += time.thread_time_ns() - began


def _async(request):
    """A way made of one coroutine function per request."""

    def way(tag, seconds):
        async def one(label):
            with tag(label):
                for _ in range(10):
                    await request(label)

        async def main():
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                await asyncio.gather(*(asyncio.create_task(one(x)) for x in "ab"))

        asyncio.run(main())

    return way


@_async
async def loop(label):
    burn(label)
    await asyncio.sleep(0)


async def _child(label):
    burn(label)


@_async
async def child(label):
    async with asyncio.TaskGroup() as group:
        group.create_task(_child(label))


@_async
async def to_thread(label):
    await asyncio.to_thread(burn, label)


@_async
async def anyio(label):
    import anyio.to_thread

    await anyio.to_thread.run_sync(burn, label)


@_async
async def asgiref(label):
    from asgiref.sync import sync_to_async

    await sync_to_async(burn, thread_sensitive=False)(label)


def gthread(tag, seconds):
    """A server's pool: each job labels itself, as middleware does."""

    def job(label):
        with tag(label):
            burn(label)

    end = time.monotonic() + seconds
    with ThreadPoolExecutor(4) as pool:
        while time.monotonic() < end:
            list(pool.map(job, "abababab"))


def gevent(tag, seconds):
    import gevent

    def request(label):
        with tag(label):
            for _ in range(10):
                burn(label)
                gevent.sleep(0)

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        gevent.joinall([gevent.spawn(request, label) for label in "abab"])


def thread(tag, seconds):
    """Plain threads; ours are given the labels by `carry`, peers have no such thing."""
    try:
        from stroboscope import carry
    except ImportError:
        carry = _same
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        threads = []
        for label in "ab":
            with tag(label):
                threads.append(threading.Thread(target=carry(_burns), args=(label,)))
        for one in threads:
            one.start()
        for one in threads:
            one.join()


def _same(function):
    return function


def _burns(label):
    # 150 and 50 ms: a thread that ends before the kernel's next tick loses its last
    # sample, up to 4 ms of its CPU time.
    for _ in range(100):
        burn(label)


WAYS = {
    "loop": loop,
    "child": child,
    "to_thread": to_thread,
    "anyio": anyio,
    "asgiref": asgiref,
    "gthread": gthread,
    "gevent": gevent,
    "thread": thread,
}
