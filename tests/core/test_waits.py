"""Waits in asyncio and in executors: whose, how long, and at what cost to others."""

import asyncio
import contextlib
import gc
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor, thread
from typing import Any

import anyio.to_thread
import pytest
from contending import (
    Clock,
    count,
    counting,
    delay_s,
    delays_by,
    functions,
    once_in_three,
)

from stroboscope import do
from stroboscope._core import _native
from stroboscope._core.replacing import REPLACED

pytestmark = pytest.mark.native


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    loops = pytest.importorskip(request.param, reason=f"no {request.param} here")
    made: Callable[[Coroutine[Any, Any, Any]], Any] = loops.run
    return made


@once_in_three
def test_asyncio_locks_by_endpoint(run: Callable[..., Any]) -> None:
    """Block to each waiter, mutex to each holder, within 5 % of every task's clock."""
    clock = Clock()

    async def request(lock: asyncio.Lock, endpoint: str, seconds: float) -> None:
        with do(endpoint=endpoint):
            with clock(f"{endpoint} waits"):
                await lock.acquire()
            with clock(f"{endpoint} holds"):
                await asyncio.sleep(seconds)
            lock.release()

    async def main() -> None:
        lock = asyncio.Lock()
        await asyncio.gather(
            request(lock, "/slow", 0.2),
            request(lock, "/a", 0.1),
            request(lock, "/b", 0.05),
        )

    with counting() as counted:
        run(main())

    took = clock.took
    blocked = delays_by(counted.block, "endpoint")
    held = delays_by(counted.mutex, "endpoint")
    for endpoint in ("/a", "/b"):
        truth = took[f"{endpoint} waits"]
        assert blocked[endpoint] == pytest.approx(truth, rel=0.05)
    assert held["/slow"] == pytest.approx(2 * took["/slow holds"], rel=0.05)
    assert held["/a"] == pytest.approx(took["/a holds"], rel=0.05)
    assert "/b" not in held
    assert {"Lock.acquire", "Lock.release"} <= functions(counted.block + counted.mutex)
    assert _native.contention_waiting() == 0


@once_in_three
def test_every_primitive_of_asyncio_is_seen(run: Callable[..., Any]) -> None:
    """Event, Condition, Semaphore, Barrier, Queue: block with the task's labels."""
    clock = Clock()

    async def timed(name: str, wait: Callable[[], Awaitable[object]]) -> None:
        with do(endpoint=name), clock(name):
            await wait()

    async def main() -> None:
        event, semaphore = asyncio.Event(), asyncio.Semaphore(0)
        barrier, condition = asyncio.Barrier(2), asyncio.Condition()
        empty, full = asyncio.Queue[int](), asyncio.Queue[int](1)
        full.put_nowait(1)

        async def told() -> None:
            async with condition:
                await condition.wait()

        waits: dict[str, Callable[[], Awaitable[object]]] = {
            "event": event.wait,
            "semaphore": semaphore.acquire,
            "barrier": barrier.wait,
            "condition": told,
            "get": empty.get,
            "put": lambda: full.put(2),
        }
        tasks = [asyncio.create_task(timed(*one)) for one in waits.items()]
        await asyncio.sleep(0.15)
        event.set()
        semaphore.release()
        async with condition:
            condition.notify()
        empty.put_nowait(1)
        full.get_nowait()
        await barrier.wait()
        await asyncio.gather(*tasks)

    with counting() as counted:
        run(main())

    blocked = delays_by(counted.block, "endpoint")
    assert {"event", "semaphore", "barrier", "condition", "get", "put"} <= set(blocked)
    for name, truth in clock.took.items():
        assert blocked[name] == pytest.approx(truth, rel=0.05)


def test_a_cancelled_wait_counts_and_leaves_nothing(run: Callable[..., Any]) -> None:
    """The lock goes to the next, and no record stays."""

    async def main() -> None:
        lock = asyncio.Lock()
        await lock.acquire()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(lock.acquire(), 0.05)
        waiting = asyncio.create_task(lock.acquire())
        await asyncio.sleep(0.02)
        lock.release()
        await waiting
        lock.release()

    with counting() as counted:
        run(main())
        gc.collect()
        assert _native.contention_waiting() == 0

    assert count(counted.block, "acquire") == 2
    assert delay_s(counted.mutex, "main") > 0.06


def test_a_wait_nobody_ends_is_no_charge() -> None:
    """A task that is dropped with its loop takes its record along."""

    async def main() -> None:
        lock = asyncio.Lock()
        await lock.acquire()
        tasks.append(asyncio.get_running_loop().create_task(lock.acquire()))
        await asyncio.sleep(0.01)

    tasks: list[Any] = []
    with counting():
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        tasks[0]._log_destroy_pending = False
        loop.close()
        tasks.clear()
        gc.collect()

        assert _native.contention_waiting() == 0


@once_in_three
def test_time_in_an_executors_queue_is_the_submitters() -> None:
    """By its labels, under a leaf that names it; also by to_thread."""
    clock, pool = Clock(), ThreadPoolExecutor(1)

    def work(name: str, seconds: float) -> None:
        clock.took[name] = time.perf_counter() - began
        time.sleep(seconds)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with do(endpoint="/first"):
            first = loop.run_in_executor(pool, work, "first", 0.15)
        with do(endpoint="/second"):
            second = loop.run_in_executor(pool, work, "second", 0.0)
        await asyncio.gather(first, second)
        with do(endpoint="/thread"):
            await asyncio.to_thread(time.sleep, 0)

    with counting() as counted:
        began = time.perf_counter()
        asyncio.run(main())
        pool.shutdown()

    queued = [
        s for s in counted.block if s.stack[0].function == "[queued in an executor]"
    ]
    waited = delays_by(queued, "endpoint")
    assert set(waited) == {"/first", "/second", "/thread"}
    assert waited["/second"] == pytest.approx(clock.took["second"], rel=0.05)
    assert waited["/first"] < 0.05
    assert {"ThreadPoolExecutor.submit"} <= functions(queued)


async def wants_a_thread(limiter: anyio.CapacityLimiter, endpoint: str) -> None:
    with do(endpoint=endpoint):
        await anyio.to_thread.run_sync(time.sleep, 0.1, limiter=limiter)


@once_in_three
def test_who_waits_for_a_thread_of_anyio_waits_at_its_limiter() -> None:
    """Two jobs, one token: the second's wait is counted, in the stack of its caller."""

    async def main() -> None:
        limiter = anyio.CapacityLimiter(1)
        await asyncio.gather(
            wants_a_thread(limiter, "/first"), wants_a_thread(limiter, "/second")
        )

    with counting() as counted:
        asyncio.run(main())

    waited = [s for s in counted.block if "wants_a_thread" in functions([s])]
    assert delays_by(waited, "endpoint") == {"/second": pytest.approx(0.1, rel=0.5)}
    assert not [s for s in counted.mutex if "wants_a_thread" in functions([s])]


def test_methods_replaced_by_others_stay_theirs() -> None:
    """Who patches over us keeps his patch, and switching again counts once."""
    seen = []
    with counting():
        ours = asyncio.Lock._get_loop

        def theirs(self: asyncio.Lock) -> asyncio.AbstractEventLoop:
            seen.append(self)
            return ours(self)

        asyncio.mixins._LoopBoundMixin._get_loop = theirs  # type: ignore[attr-defined]
    try:
        assert asyncio.Lock._get_loop is theirs
        with counting() as counted:
            asyncio.run(contended())
    finally:
        asyncio.mixins._LoopBoundMixin._get_loop = ours  # type: ignore[attr-defined]
        with counting():
            pass

    assert len(seen) == 1
    assert count(counted.block, "acquire") == 1
    assert type(asyncio.Lock._get_loop).__name__ == "function"
    assert type(thread._WorkItem.run).__name__ == "function"
    assert not REPLACED.are_any()


async def contended() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    asyncio.get_running_loop().call_later(0.01, lock.release)
    await lock.acquire()


def test_an_uncontended_lock_of_asyncio_runs_no_code_of_ours() -> None:
    """Nothing that is replaced is called when nothing waits, but for the release."""

    async def main() -> None:
        lock = asyncio.Lock()
        async with lock:
            pass
        event = asyncio.Event()
        event.set()
        await event.wait()
        async with asyncio.Semaphore():
            pass

    calls = []
    original = asyncio.mixins._LoopBoundMixin._get_loop  # type: ignore[attr-defined]
    with counting() as counted:
        ours = asyncio.mixins._LoopBoundMixin._get_loop  # type: ignore[attr-defined]
        try:
            asyncio.mixins._LoopBoundMixin._get_loop = (  # type: ignore[attr-defined]
                lambda self: calls.append(self) or ours(self)
            )
            asyncio.run(main())
        finally:
            asyncio.mixins._LoopBoundMixin._get_loop = ours  # type: ignore[attr-defined]

    assert calls == []
    assert not [s for s in counted.block if "main" in functions([s])]
    assert asyncio.mixins._LoopBoundMixin._get_loop is original  # type: ignore[attr-defined]
