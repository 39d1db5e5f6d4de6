"""Hearts, the wait for a late one, and the look at a thread: native and portable."""

import asyncio
import contextvars
import os
import threading
import time
from types import ModuleType
from typing import Any

import pytest

from stroboscope._core import LABELS, LabelCell, _native, _pure_watching

BOTH = pytest.mark.parametrize(
    "watching", [_native, _pure_watching], ids=["native", "portable"]
)


def sleeps_here(seconds: float) -> None:
    time.sleep(seconds)


async def given_heart(watching: Any) -> Any:
    heart = watching.Heart()
    loop = asyncio.get_running_loop()
    contextvars.Context().run(loop.add_reader, heart.fileno(), heart)
    await asyncio.sleep(0.05)
    assert heart.beats >= 1
    return heart


@BOTH
def test_a_late_heart_ends_the_wait_and_its_thread_can_be_seen(
    watching: ModuleType,
) -> None:
    """By how much it was late is known afterwards."""
    seen: list[Any] = []

    async def main() -> Any:
        heart = await given_heart(watching)

        def wait() -> None:
            assert watching.watch_wait(5.0)
            seen.append((heart.overdue_ns, watching.look(heart.ident)))

        waiter = threading.Thread(target=wait)
        waiter.start()
        await asyncio.sleep(0.2)
        sleeps_here(0.4)
        await asyncio.sleep(0.1)
        waiter.join()
        loop = asyncio.get_running_loop()
        loop.remove_reader(heart.fileno())
        return heart

    watching.watch_start(100_000_000)
    try:
        heart = asyncio.run(main())
    finally:
        watching.watch_stop()

    ((overdue_ns, (_, frames)),) = seen
    assert overdue_ns >= 100_000_000
    assert frames[0][1] == "sleeps_here"
    assert heart.late_beats == 1
    assert 100_000_000 < heart.late_ns < 600_000_000
    heart.stop()


@BOTH
def test_a_wait_ends_after_its_time_and_with_the_watch(watching: ModuleType) -> None:
    """Without anything late; and again and again, with a watch that starts anew."""
    for _ in range(20):
        watching.watch_start(50_000_000)
        answers: list[bool] = []
        began = time.monotonic()
        assert watching.watch_wait(0.02)
        assert time.monotonic() - began >= 0.015
        waiter = threading.Thread(
            target=lambda into: into.append(watching.watch_wait(30.0)), args=(answers,)
        )
        waiter.start()
        time.sleep(0.01)
        watching.watch_stop()
        waiter.join(5)
        assert answers == [False]
    assert watching.watch_wait(1.0) is False


def test_a_look_gives_the_context_of_the_same_moment() -> None:
    """The label of a thread that changes label and function together never differs
    from the function seen."""
    end = threading.Event()

    def burn_a() -> None:
        sum(range(50))

    def burn_b() -> None:
        sum(range(50))

    def work() -> None:
        while not end.is_set():
            for name, burn in (("a", burn_a), ("b", burn_b)):
                LABELS.set(LabelCell(name))
                burn()
                LABELS.set(None)

    thread = threading.Thread(target=contextvars.Context().run, args=(work,))
    thread.start()
    seen = 0
    try:
        for _ in range(1000):
            time.sleep(0.0002)  # lets it go on
            found = _native.look(thread.ident or 0)
            if found is None or found[0] is None:
                continue
            cell = found[0].get(LABELS)
            leaf = found[1][0][1]
            if "burn_" in leaf:
                seen += 1
                assert cell is not None
                assert leaf.endswith(str(cell.labels))
    finally:
        end.set()
        thread.join()

    assert seen > 50


def test_nobody_to_look_at_is_nothing() -> None:
    """A thread that is gone, or never was."""
    assert _native.look(1) is None
    assert _pure_watching.look(1) is None


def test_loops_and_threads_come_and_go_under_the_watch() -> None:
    """A thread that ends with its loop open is looked at no more."""
    hearts = []

    async def main() -> None:
        hearts.append(await given_heart(_native))

    def work() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loops.append(loop)

    loops: list[asyncio.AbstractEventLoop] = []
    _native.watch_start(20_000_000)
    try:
        for _ in range(60):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            if len(loops) > 20:
                hearts.pop(0).stop()
                loops.pop(0).close()
        time.sleep(0.1)
    finally:
        _native.watch_stop()
        for loop in loops:
            loop.close()
        for heart in hearts:
            heart.stop()


def test_a_forked_child_wakes_no_loop_of_its_parent() -> None:
    """It has no hearts, no ticker, and may watch anew."""

    async def main() -> int:
        heart = await given_heart(_native)
        child = os.fork()
        if child == 0:
            _native.after_fork()
            alive = _native.watch_wait(0.01)
            _native.watch_start(50_000_000)
            works = _native.watch_wait(0.01)
            _native.watch_stop()
            os._exit(0 if works and not alive and heart.fileno() == -1 else 1)
        _, status = os.waitpid(child, 0)  # noqa: ASYNC222
        beats = heart.beats
        await asyncio.sleep(1.2)
        assert heart.beats > beats
        asyncio.get_running_loop().remove_reader(heart.fileno())
        heart.stop()
        return status

    _native.watch_start(100_000_000)
    try:
        assert asyncio.run(main()) == 0
    finally:
        _native.watch_stop()
