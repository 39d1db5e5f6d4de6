"""Every way a request's work can move keeps its own label, or has none.

Two requests run at once under the real sampler; each burns CPU in a function of its
own name, so a stack tells whose sample it is. A label is then right, or missing where
Python gives no way to carry it; it is never the other request's.
"""

import asyncio
import contextvars
import queue
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import burning
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from burning import (
    BURN,
    NAMES,
    STEP_S,
    STEPS,
    assert_labels,
    burn,
    burn_async,
    sampled,
    seen,
)

from stroboscope import Job, carry, do, propagate_to_threads

# ---- in one event loop ------------------------------------------------------------


async def child_task(name: str) -> None:
    await asyncio.create_task(burn_async(name))


async def task_group(name: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(burn_async(name))


async def gathered(name: str) -> None:
    await asyncio.gather(burn_async(name), asyncio.sleep(0))


async def shielded(name: str) -> None:
    await asyncio.shield(asyncio.wait_for(burn_async(name), 30))


async def call_soon(name: str) -> None:
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.call_soon(burn, name)
    loop.call_later(0.001, lambda: (burn(name), done.set()))
    await done.wait()


async def async_generator(name: str) -> None:
    async def steps() -> AsyncIterator[None]:
        for _ in range(STEPS):
            BURN[name](STEP_S)
            yield

    async for _ in steps():
        await asyncio.sleep(0)


async def anyio_task_group(name: str) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(burn_async, name)


# ---- from the loop into threads and back ------------------------------------------


async def to_thread(name: str) -> None:
    await asyncio.to_thread(burn, name)


async def executor_with_carry(name: str) -> None:
    await asyncio.get_running_loop().run_in_executor(None, carry(burn), name)


async def executor_bare(name: str) -> None:
    await asyncio.get_running_loop().run_in_executor(None, burn, name)


async def anyio_to_thread(name: str) -> None:
    await anyio.to_thread.run_sync(burn, name)


async def anyio_from_thread(name: str) -> None:
    def inside() -> None:
        anyio.from_thread.run(burn_async, name)

    await anyio.to_thread.run_sync(inside)


async def sync_to_async_sensitive(name: str) -> None:
    await sync_to_async(burn)(name)


async def sync_to_async_free(name: str) -> None:
    await sync_to_async(burn, thread_sensitive=False)(name)


async def there_and_back(name: str) -> None:
    await sync_to_async(async_to_sync(burn_async))(name)


# ---- without a loop ---------------------------------------------------------------


def async_to_sync_alone(name: str) -> None:
    async_to_sync(burn_async)(name)


def thread_with_carry(name: str) -> None:
    thread = threading.Thread(target=carry(burn), args=(name,))
    thread.start()
    thread.join()


def thread_bare(name: str) -> None:
    thread = threading.Thread(target=burn, args=(name,))
    thread.start()
    thread.join()


def thread_propagated(name: str) -> None:
    undo = propagate_to_threads()
    try:
        thread_bare(name)
    finally:
        undo()


POOL = ThreadPoolExecutor(2)


def pool_with_carry(name: str) -> None:
    POOL.submit(carry(burn), name).result()


def pool_bare(name: str) -> None:
    POOL.submit(burn, name).result()


def pool_propagated(name: str) -> None:
    undo = propagate_to_threads()
    try:
        POOL.submit(burn, name).result()
    finally:
        undo()


def job_in_a_queue(name: str) -> None:
    jobs: queue.Queue[Job[None] | None] = queue.Queue()

    def consume() -> None:
        while job := jobs.get():
            job()

    consumer = threading.Thread(target=consume, args=())
    contextvars.Context().run(consumer.start)
    jobs.put(Job(burn, name))
    jobs.put(None)
    consumer.join()


def generator(name: str) -> None:
    def steps() -> Iterator[None]:
        for _ in range(STEPS):
            BURN[name](STEP_S)
            yield

    for _ in steps():
        pass


def greenlet_with_context(name: str) -> None:
    import greenlet

    other = greenlet.greenlet(burn)
    other.gr_context = contextvars.copy_context()
    other.switch(name)


def greenlet_bare(name: str) -> None:
    import greenlet

    greenlet.greenlet(burn).switch(name)


ASYNC: list[Callable[[str], Awaitable[None]]] = [
    *(burn_async, child_task, task_group, gathered, shielded, call_soon),
    *(async_generator, anyio_task_group, to_thread, executor_with_carry),
    *(anyio_to_thread, anyio_from_thread, sync_to_async_sensitive),
    *(sync_to_async_free, there_and_back),
]
SYNC: list[Callable[[str], None]] = [
    *(burn, async_to_sync_alone, thread_with_carry, thread_propagated),
    *(pool_with_carry, pool_propagated, job_in_a_queue, generator),
    greenlet_with_context,
]


async def both_async(move: Callable[[str], Awaitable[None]]) -> None:
    async def request(name: str) -> None:
        with do(request=name):
            await move(name)

    # Tasks of their own, as servers make: each has its own context.
    await asyncio.gather(*(asyncio.create_task(request(name)) for name in NAMES))


def both_sync(move: Callable[[str], None]) -> None:
    def request(name: str) -> None:
        with do(request=name):
            move(name)

    threads = [threading.Thread(target=request, args=(name,)) for name in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("move", ASYNC, ids=lambda move: move.__name__)
def test_work_moved_by_a_loop_keeps_its_label(
    move: Callable[[str], Awaitable[None]],
) -> None:
    """Tasks, callbacks, generators and the worker threads that copy the context."""
    profile = sampled(lambda: asyncio.run(both_async(move)))

    assert_labels(profile, "request", {"a": "a", "b": "b"})


@pytest.mark.parametrize("move", SYNC, ids=lambda move: move.__name__)
def test_work_moved_by_threads_keeps_its_label(move: Callable[[str], None]) -> None:
    """With `carry`, `propagate_to_threads`, `Job`, or a context of its own."""
    profile = sampled(lambda: both_sync(move))

    assert_labels(profile, "request", {"a": "a", "b": "b"})


@pytest.mark.parametrize(
    "move", [thread_bare, pool_bare, greenlet_bare], ids=lambda move: move.__name__
)
def test_work_python_gives_no_way_to_follow_has_no_label(
    move: Callable[[str], None],
) -> None:
    """A bare thread, a pool's worker and a greenlet start with an empty context."""
    profile = sampled(lambda: both_sync(move))

    assert_labels(profile, "request", {"a": "", "b": ""})


def test_an_executor_without_carry_has_no_label() -> None:
    """`run_in_executor`, unlike `to_thread`, does not copy the context."""
    profile = sampled(lambda: asyncio.run(both_async(executor_bare)))

    assert_labels(profile, "request", {"a": "", "b": ""})


def test_greenlets_that_switch_keep_their_own_label() -> None:
    """Two greenlets on one thread, switching in the middle of their work."""
    import greenlet

    def request(name: str) -> None:
        with do(request=name):
            for _ in range(STEPS):
                BURN[name](STEP_S)
                main.switch()

    def work() -> None:
        both = [greenlet.greenlet(request) for _ in NAMES]
        for _ in range(STEPS + 1):
            for one, name in zip(both, NAMES, strict=True):
                if not one.dead:
                    one.switch(*(() if one else (name,)))

    main = greenlet.getcurrent()
    profile = sampled(work)

    assert_labels(profile, "request", {"a": "a", "b": "b"})


def test_gevent_keeps_labels_apart_and_spawns_without() -> None:
    """Monkey-patched: each greenlet its own label; what it spawns has none."""
    code = """
from gevent import monkey; monkey.patch_all()
import sys, gevent
sys.path.insert(0, sys.argv[1])
import burning as t
from stroboscope import do
def request(name):
    with do(request=name):
        for _ in range(t.STEPS):
            t.BURN[name](t.STEP_S)
            gevent.sleep(0)
        if sys.argv[2] == "spawn":
            gevent.spawn(t.burn, name).join()
def work():
    gevent.joinall([gevent.spawn(request, name) for name in t.NAMES])
found = t.seen(t.sampled(work), "request")
print({name: sorted(c) for name, c in found.items()})
"""
    folder = burning.__file__.rpartition("/")[0]

    def run(mode: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, folder, mode],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.strip()

    assert run("alone") == "{'a': ['a'], 'b': ['b']}"
    assert run("spawn") == "{'a': ['', 'a'], 'b': ['', 'b']}"


def test_a_job_crosses_processes_with_its_labels() -> None:
    """Plain data in a pipe: the other process samples under the same labels."""
    import multiprocessing

    with do(request="a"):
        job = Job(burn, "a")
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=_run_job, args=(child,))
    process.start()
    parent.send(job.labels)
    found = parent.recv()
    process.join()

    assert job.labels == {"request": "a"}
    assert found == {"a": 1}


def _run_job(pipe: Any) -> None:
    job = Job(burn, "a")
    job.labels = pipe.recv()
    counts = seen(sampled(job), "request")["a"]
    pipe.send(dict.fromkeys(counts, 1))
