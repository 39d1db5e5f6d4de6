"""What a capture replaces is put back, however it ends and whoever else is there."""

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hooking import hooks, of_captures
from hypothesis import given, settings
from hypothesis import strategies as st

from stroboscope._core.contention import contention
from stroboscope._core.replacing import REPLACED
from stroboscope.tracing import Recorder, captures
from stroboscope.tracing.extras import Collector
from stroboscope.tracing.extras.callbacks import LoopCallbacks
from stroboscope.tracing.extras.pools import PoolJobs
from stroboscope.tracing.extras.waits import Waits


def test_all_is_as_it_was_however_a_capture_ends(flight: Recorder) -> None:
    """The very same objects; during it, others."""
    before, during = of_captures(), []

    def is_cancelled() -> bool:
        during.append(of_captures())
        raise KeyError

    captures.record(0.05, lambda: False, "perfetto")
    assert of_captures() == before
    with pytest.raises(KeyError):
        captures.record(0.05, is_cancelled, "perfetto")

    assert of_captures() == before
    assert all(a != b for a, b in zip(before, during[0], strict=True))


def test_what_others_replaced_meanwhile_stays_theirs(flight: Recorder) -> None:
    """Ours is below it, and does nothing any more. Where they put back what was there
    before us, the next capture leaves nothing of ours either."""
    original = vars(asyncio.events.Handle)["_run"]
    collector = LoopCallbacks()
    collector.start()
    ours = asyncio.events.Handle._run
    try:
        theirs: Any = lambda self: ours(self)  # noqa: E731
        asyncio.events.Handle._run = theirs  # type: ignore[method-assign]
        facts = collector.stop()
        assert ("loop_callbacks_replaced_by_others", 1) in facts
        assert vars(asyncio.events.Handle)["_run"] is theirs
        assert asyncio.run(asyncio.sleep(0, "runs")) == "runs"
    finally:
        asyncio.events.Handle._run = original  # type: ignore[method-assign]
    collector.start()
    collector.stop()
    assert vars(asyncio.events.Handle)["_run"] is original


SWITCHES = ("mutex", "block", "capture", "pause")


def switched(choices: Sequence[str], yield_: Callable[[], object]) -> None:
    """Turn these on and off in turn, each as often as it comes; in the end all off."""
    running: list[Collector] = []

    def stop() -> None:
        for one in running:
            one.stop()
        running.clear()

    for number, choice in enumerate(choices):
        is_on = number % 2 == 0
        if choice == "mutex":
            contention.set_mutex_fraction(is_on)
        elif choice == "block":
            contention.set_block_rate(is_on)
        elif choice == "capture" and running:
            stop()
        elif choice == "capture":
            running = [Waits(), LoopCallbacks(), PoolJobs()]
            for one in running:
                one.start()
        yield_()
    contention.set_mutex_fraction(0)
    contention.set_block_rate(0)
    stop()


def test_all_is_as_it_was_whatever_was_switched_in_whatever_order() -> None:
    """Knobs before, within and after a capture: the very same objects, and no layers."""

    @settings(deadline=None)  # a switch waits for others that load the machine
    @given(st.lists(st.sampled_from(SWITCHES), max_size=12))
    def switch(choices: list[str]) -> None:
        before = hooks()

        switched(choices, lambda: None)

        assert all(a is b or a == b for a, b in zip(before, hooks(), strict=True))
        assert not REPLACED.are_any()

    switch()


def test_all_is_as_it_was_after_several_threads_have_switched() -> None:
    """One takes captures, two turn knobs, while pools and loops run on: 40 times."""
    before = hooks()
    drawn = random.Random(5)
    over = threading.Event()

    async def hand_over() -> None:
        lock = asyncio.Lock()
        await asyncio.gather(*(held(lock) for _ in range(3)))

    async def held(lock: asyncio.Lock) -> None:
        async with lock:
            await asyncio.sleep(0)

    def work() -> None:
        with ThreadPoolExecutor(2) as pool:
            while not over.is_set():
                pool.submit(int).result()
                asyncio.run(hand_over())

    def switch(seed: int, known: tuple[str, ...]) -> None:
        chooser = random.Random(seed)
        choices = [chooser.choice(known) for _ in range(30)]
        switched(choices, lambda: time.sleep(chooser.choice((0, 0, 0.0005))))

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(40):
            ways = (
                ("capture", "pause"),
                ("mutex", "block"),
                ("block", "mutex", "pause"),
            )
            threads = [
                threading.Thread(target=switch, args=(drawn.random(), known))
                for known in ways
            ]
            for one in threads:
                one.start()
            for one in threads:
                one.join()
            contention.set_mutex_fraction(0)
            contention.set_block_rate(0)
            assert hooks() == before
            assert not REPLACED.are_any()
    finally:
        over.set()
        worker.join()


FORKED = """
import asyncio, gc, os, sys, threading, time
from stroboscope.tracing import captures

def hooks():
    bound = asyncio.mixins._LoopBoundMixin
    return [
        list(gc.callbacks),
        vars(asyncio.events.Handle)["_run"],
        vars(bound)["_get_loop"],
    ]

before = hooks()
capture = threading.Thread(target=captures.record, args=(1, lambda: False, "perfetto"))
capture.start()
time.sleep(0.3)
assert hooks() != before
if (pid := os.fork()) == 0:
    os._exit(0 if hooks() == before else 1)
capture.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_child_forked_during_a_capture_has_no_hooks() -> None:
    """It takes none itself, and nobody would take them off."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, timeout=60
    )

    assert done.returncode == 0, done.stderr.decode()
