"""Stacks of threads, tasks and greenlets: what they say is what was built."""

import asyncio
import contextvars
import gc
import math
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import pytest

import stroboscope
from stroboscope import labels
from stroboscope._core import LabelCell
from stroboscope.profiles.ages import Ages
from stroboscope.profiles.stacks import Snapshot, Stack, Stacks, snapshot, to_profile


async def leaf() -> None:
    await asyncio.get_running_loop().create_future()


async def through_coroutines() -> None:
    await leaf()


async def numbers() -> AsyncIterator[int]:
    yield 1
    await leaf()
    yield 2


async def through_async_for() -> None:
    async for _ in numbers():
        pass


async def through_anext() -> None:
    one = numbers()
    await anext(one)
    await anext(one, None)


class Awaitable_:
    def __await__(self) -> Generator[Any, Any, None]:
        yield from leaf().__await__()


async def through_an_awaitable() -> None:
    await Awaitable_()


async def through_gather() -> None:
    await asyncio.gather(leaf(), leaf())


async def on_a_task() -> None:
    await asyncio.create_task(leaf(), name="inner")


CHAINS = [
    (through_coroutines, ["leaf", "through_coroutines"]),
    (through_async_for, ["leaf", "numbers", "through_async_for"]),
    (through_anext, ["leaf", "numbers", "through_anext"]),
    (through_an_awaitable, ["leaf", "Awaitable_.__await__", "through_an_awaitable"]),
    (through_gather, ["through_gather"]),
    (on_a_task, ["on_a_task"]),
]


def taken(
    *made: Callable[[], Awaitable[None]], ages: Ages | None = None, **labels: str
) -> Snapshot:
    """A snapshot, from another thread, of tasks that run these to their first wait."""

    async def main() -> Snapshot:
        with stroboscope.do(**labels):
            tasks = [asyncio.ensure_future(one()) for one in made]
        await asyncio.sleep(0.02)
        try:
            loop = asyncio.get_running_loop()

            def read() -> Snapshot:
                time.sleep(0.02)  # the loop comes to rest
                return snapshot([loop], ages)

            return await asyncio.to_thread(read)
        finally:
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(main())


def functions(stack: Stack) -> list[str]:
    return [frame.function for frame in stack.frames]


@pytest.mark.parametrize(("made", "expected"), CHAINS)
def test_a_task_shows_all_it_awaits(
    made: Callable[[], Awaitable[None]], expected: list[str]
) -> None:
    """The whole await chain, leaf first, with the line of each `await`."""
    found = taken(made, who="me")

    (stack,) = [s for s in found.stacks if functions(s) == expected]
    assert stack.kind == "task"
    assert stack.labels == (("who", "me"),)
    assert all(f.line > f.start_line for f in stack.frames)


def test_what_a_task_waits_for_is_named() -> None:
    """The task it waits for by its name; a gathering; a future; not begun at all."""
    found = taken(through_coroutines, through_gather, on_a_task)
    states = {functions(s)[-1]: s.state for s in found.stacks if s.kind == "task"}

    assert states["through_coroutines"] == "suspended on Future"
    assert states["through_gather"] == "suspended on GatheringFuture"
    assert states["on_a_task"] == 'suspended on task "inner"'
    assert states["taken.<locals>.main"].startswith("suspended on ")


def test_a_task_has_its_own_context_whatever_its_callbacks_have() -> None:
    """A done-callback brings a context of its own, which the garbage collector shows
    as well: it is never taken for the task's."""
    foreign = contextvars.copy_context()
    foreign.run(lambda: labels.set(who="the callback"))

    async def main() -> Snapshot:
        with stroboscope.do(who="the task"):
            task = asyncio.create_task(through_coroutines())
        task.add_done_callback(lambda _: None, context=foreign)
        await asyncio.sleep(0.01)
        found = await asyncio.to_thread(snapshot, [asyncio.get_running_loop()])
        task.cancel()
        return found

    found = asyncio.run(main())

    (stack,) = [s for s in found.stacks if functions(s)[-1] == "through_coroutines"]
    assert dict(stack.labels)["who"] == "the task"


def test_a_chain_of_any_length_is_cut_at_its_root() -> None:
    """Three thousand coroutines in a row cost the root, and say so."""

    async def deep(left: int) -> None:
        await (deep(left - 1) if left else leaf())

    found = taken(lambda: deep(700))

    (stack,) = [s for s in found.stacks if len(s.frames) > 500]
    assert stack.frames[0].function == "leaf"
    assert stack.frames[-1].function == "[truncated]"


def test_a_task_made_in_python_is_read_as_well() -> None:
    """asyncio's own Python class of tasks, and a class derived from the C one. From 3.14
    asyncio itself does not list the first."""

    class Derived(asyncio.Task[None]):
        def get_coro(self) -> Any:
            raise RuntimeError("not the application's code")

    async def main() -> Snapshot:
        loop = asyncio.get_running_loop()
        made = [
            asyncio.tasks._PyTask(through_gather(), loop=loop),  # type: ignore[attr-defined]
            Derived(through_coroutines(), loop=loop),
        ]
        await asyncio.sleep(0.01)
        found = await asyncio.to_thread(snapshot, [loop])
        for task in made:
            task.cancel()
        await asyncio.gather(*made, return_exceptions=True)
        return found

    seen = {functions(s)[-1] for s in asyncio.run(main()).stacks}

    listed = {"through_gather"} if sys.version_info < (3, 14) else set()
    assert {"through_coroutines"} | listed <= seen


def test_a_thread_says_what_it_waits_for() -> None:
    """A lock, a sleep, and the GIL; its age is the kernel's."""
    lock = threading.Lock()
    lock.acquire()
    done = threading.Event()

    def spin() -> None:
        while not done.is_set():
            pass

    threads = [
        threading.Thread(target=lambda: lock.acquire(timeout=20), name="locked"),
        threading.Thread(target=lambda: time.sleep(2), name="asleep"),
        threading.Thread(target=spin, name="spinning"),
        threading.Thread(target=spin, name="spinning"),
    ]
    for thread in threads:
        thread.daemon = True
        thread.start()
    time.sleep(0.2)
    states: dict[str, set[str]] = {}
    for _ in range(20):
        for stack in snapshot().stacks:
            states.setdefault(stack.name, set()).add(stack.state)
            age_s = stack.age_s if stack.name == "locked" else None
    done.set()
    lock.release()
    for thread in threads:
        thread.join()

    assert states["locked"] == {"blocked in futex"}
    assert "blocked in clock_nanosleep" in states["asleep"]
    assert "waiting for the GIL" in states["spinning"]
    assert states["spinning"] <= {"waiting for the GIL", "running"}
    assert age_s is None or 0.1 < age_s < 20


def test_equal_stacks_add_up_and_labels_keep_them_apart() -> None:
    """Five tasks of one label and three of another are two rows."""

    async def main() -> Snapshot:
        made = []
        for who, count in (("a", 5), ("b", 3)):
            with stroboscope.do(who=who):
                made += [
                    asyncio.create_task(through_coroutines()) for _ in range(count)
                ]
        await asyncio.sleep(0.01)
        found = await asyncio.to_thread(snapshot, [asyncio.get_running_loop()])
        for task in made:
            task.cancel()
        return found

    samples = [
        (sample.values, dict(sample.labels))
        for sample in to_profile(asyncio.run(main()), 1).samples
        if sample.stack[-1].function == "through_coroutines"
    ]

    assert sorted(samples, key=str) == [
        ((3,), {"who": "b", "kind": "task"}),
        ((5,), {"who": "a", "kind": "task"}),
    ]


READS = 50


def test_tasks_made_and_ended_meanwhile_break_nothing() -> None:
    """A loop that makes and ends tasks as fast as it can is read fifty times; the
    task that stays is in each."""

    async def main() -> list[int]:
        stays = [asyncio.create_task(leaf()) for _ in range(300)]
        loop = asyncio.get_running_loop()

        def read() -> list[int]:
            found = (snapshot([loop]).stacks for _ in range(READS))
            return [sum(functions(s) == ["leaf"] for s in one) for one in found]

        reading = asyncio.ensure_future(asyncio.to_thread(read))
        while not reading.done():
            await asyncio.gather(*(asyncio.sleep(0) for _ in range(50)))
        for task in stays:
            task.cancel()
        return reading.result()

    assert asyncio.run(main()) == [300] * READS


def test_ages_are_first_sights_and_requests() -> None:
    """A task is as old as its first sight; one of a request as old as the request; what
    is gone is forgotten."""

    class Request:
        began_ns = 5_000_000_000

        def labels(self) -> None:
            return None

    class Task:
        pass

    ages, task, other = Ages(), Task(), Task()
    cell = LabelCell()
    cell.source = Request().labels
    inner = LabelCell(None, cell)
    s = 10**9

    assert ages.age_ns(task, None, 10 * s) == 0
    assert ages.age_ns(other, inner, 10 * s) == 5 * s
    ages.forget_others()
    assert ages.age_ns(task, None, 70 * s) == 60 * s
    ages.forget_others()
    ages.forget_others()
    assert ages.age_ns(task, None, 80 * s) == 0


def test_only_the_old_are_left_by_a_least_age() -> None:
    """What nobody knows the age of is not old."""
    stacks = Stacks()
    stacks.frames.append(())
    for name, age_s in (("young", 1.0), ("old", 61.0), ("unknown", math.nan)):
        stacks.add("task", name, "", 0, 0, age_s)

    assert [s.name for s in Snapshot(stacks).older_than(60).stacks] == ["old"]


def test_ten_thousand_tasks_set_off_no_garbage_collection() -> None:
    """A full collection would stop an application of that many tasks for longer than
    the walk does."""
    begun: list[int] = []

    def on_collection(phase: str, about: dict[str, int]) -> None:
        if phase == "start" and threading.get_ident() == walker[0]:
            begun.append(about["generation"])

    async def main() -> int:
        tasks = [asyncio.create_task(leaf()) for _ in range(10_000)]
        await asyncio.sleep(0)
        gc.collect()
        loop, ages = asyncio.get_running_loop(), Ages()

        def read() -> int:
            walker.append(threading.get_ident())
            gc.callbacks.append(on_collection)
            try:
                return len(to_profile(snapshot([loop], ages), 1).samples)
            finally:
                gc.callbacks.remove(on_collection)

        found = await asyncio.to_thread(read)
        for task in tasks:
            task.cancel()
        return found

    walker: list[int] = []
    assert asyncio.run(main()) < 30
    assert 2 not in begun
    # Seen on 3.14: a young collection for every 2000 tasks.
    assert len(begun) <= (3 if sys.version_info < (3, 14) else 6)


GREENLETS = """
import gevent, stroboscope
from stroboscope.profiles.stacks import snapshot

def waits(): gevent.sleep(5)
def labelled():
    with stroboscope.do(who="me"):
        waits()

made = [gevent.spawn(labelled), gevent.spawn(waits)]
gevent.sleep(0.05)
for stack in snapshot().stacks:
    if stack.kind == "greenlet":
        names = [frame.function for frame in stack.frames]
        print("waits" in names, dict(stack.labels))
"""


def test_suspended_greenlets_are_there_with_their_labels() -> None:
    """Each with its own frames and its own labels."""
    pytest.importorskip("gevent", reason="gevent is not installed")
    done = subprocess.run(
        [sys.executable, "-c", GREENLETS],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )

    lines = done.stdout.splitlines()
    assert sorted(line for line in lines if line.startswith("True")) == [
        "True {'who': 'me'}",
        "True {}",
    ], done.stderr


UNUSED_GREENLETS = """
import greenlet
from stroboscope._core import engine
from stroboscope.profiles.greenlets import find_greenlets

asked = []
search, engine.instances_of = engine.instances_of, lambda *a: asked.append(a) or search(*a)
print(len(find_greenlets()), len(asked))
made = greenlet.greenlet(print)
print(made in find_greenlets(), len(asked))
"""


def test_greenlets_are_looked_for_only_where_one_was_made() -> None:
    """The module alone, which a database library brings along, costs no search."""
    pytest.importorskip("greenlet", reason="greenlet is not installed")
    done = subprocess.run(
        [sys.executable, "-c", UNUSED_GREENLETS],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stdout.splitlines() == ["0 0", "True 1"], done.stderr


def test_no_object_is_asked_what_it_is() -> None:
    """A proxy's `__class__` is the application's code, and Django's settings raise."""
    pytest.importorskip("greenlet", reason="greenlets are looked for where they are")

    class Proxy:
        @property
        def __class__(self) -> type:  # type: ignore[override]
            asked.append(self)
            raise RuntimeError("not configured")

    asked: list[object] = []
    proxy = Proxy()
    proxy.itself = proxy  # type: ignore[attr-defined]

    snapshot()

    assert asked == []
