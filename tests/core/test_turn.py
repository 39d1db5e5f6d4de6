"""A thread of ours is let in by a busy main thread at once, and by nobody else."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from stroboscope._core import _native

pytestmark = pytest.mark.native

PAUSE_S, TICKS = 0.002, 50


@pytest.fixture
def window() -> Iterator[None]:
    """A wall window, without which there are no ticks."""
    handle = _native.wall_open()
    yield
    _native.wall_close(handle)


def asked_beside(work: Callable[[], object]) -> tuple[int, int]:
    """How often the main thread was asked for the GIL, and came, beside its `work`."""
    before = _native.turn_counts()
    ticking = threading.Thread(
        target=_native.wall_ticks, args=((PAUSE_S,) * TICKS, [set()])
    )
    ticking.start()
    while ticking.is_alive():
        work()
    ticking.join()
    asked, came = _native.turn_counts()
    return asked - before[0], came - before[1]


def is_let_in() -> bool:
    """Whether ticks beside a busy main thread got their turns, in one of a few tries:
    a main thread that another process keeps off the CPU comes too late."""
    for _ in range(5):
        asked, came = asked_beside(burn)
        if asked >= TICKS // 2 and came >= asked * 0.9:
            return True
    return False


def burn() -> None:
    for _ in range(1000):
        len("x")


@pytest.mark.usefixtures("window")
def test_a_busy_main_thread_lets_a_tick_in() -> None:
    """By the interpreter's own rule a tick would wait for 5 ms."""
    assert is_let_in()


@pytest.mark.usefixtures("window")
def test_a_main_thread_that_waits_is_not_asked() -> None:
    """The GIL is free then; an answer would come when the wait is over."""
    asked, _ = asked_beside(lambda: time.sleep(0.02))
    assert asked <= TICKS // 5


@pytest.mark.usefixtures("window")
def test_another_thread_that_is_busy_is_not_asked() -> None:
    """Pending calls are the main thread's."""
    ended = threading.Event()

    def burn_there() -> None:
        while not ended.is_set():
            burn()

    busy = threading.Thread(target=burn_there)
    busy.start()
    asked, _ = asked_beside(lambda: time.sleep(0.02))
    ended.set()
    busy.join()
    assert asked <= TICKS // 5


@pytest.mark.usefixtures("window")
def test_a_turn_that_ends_in_an_error_ends() -> None:
    """The main thread comes back at once, and can be asked again."""
    pauses = (PAUSE_S,) * 5 + ("soon",)
    failed: list[BaseException] = []

    def tick() -> None:
        try:
            _native.wall_ticks(pauses, [])
        except TypeError as error:
            failed.append(error)

    ticking = threading.Thread(target=tick)
    ticking.start()
    while ticking.is_alive():
        burn()
    assert failed
    assert is_let_in()


@pytest.mark.usefixtures("window")
def test_sets_of_one_moment_are_asked_for_at_each_tick() -> None:
    """After its pause: those of before tell of tasks that ended, and not of new ones."""
    heard: list[float] = []

    def sets() -> list[set[object]]:
        heard.append(time.monotonic())
        return []

    began = time.monotonic()
    _native.wall_ticks((PAUSE_S,) * 3, sets)

    assert len(heard) == 3
    assert heard[0] - began >= PAUSE_S
    for wrong in (lambda: 1 / 0, lambda: None):
        with pytest.raises((ZeroDivisionError, TypeError)):
            _native.wall_ticks((PAUSE_S,) * 3, wrong)  # type: ignore[arg-type]


FORKING = """
import os, random, sys, threading, time
from stroboscope._core import _native, engine
# After our own hook others run, which let go of the GIL.
os.register_at_fork(before=lambda: time.sleep(random.choice((0, 0.0001, 0.0005))))
engine.open_window(100).close()  # sees to the hooks
_native.wall_open()
done, answers = threading.Event(), sys.version_info < (3, 13)
tries = 20 if answers else 1  # others may keep it off the CPU for a while

def lets_in():
    before = _native.turn_counts()
    ticking = threading.Thread(target=_native.wall_ticks, args=((0.0005,) * 20, []))
    ticking.start()
    while ticking.is_alive():
        len("x")
    asked, came = _native.turn_counts()
    return came > before[1] if answers else asked == before[0]

def fork():
    for _ in range(60):
        child = os.fork()
        if child == 0:
            _native.wall_open()
            os._exit(0 if any(lets_in() for _ in range(tries)) else 3)
        if status := os.waitpid(child, 0)[1]:
            print("a child ended with", status, flush=True)
            os._exit(1)
    done.set()

def tick():
    while not done.is_set():
        _native.wall_ticks((0.00005,) * 1000, [])

threads = [threading.Thread(target=fork), threading.Thread(target=tick)]
for thread in threads: thread.start()
while not done.is_set():
    len("x")
for thread in threads: thread.join()
asked, came = _native.turn_counts()
print("all did" if came > 100 else (asked, came))
"""


def test_a_child_that_another_thread_forked_answers_or_is_not_asked() -> None:
    """The interpreter remembers for ever that a main thread was in a pending call when
    another forked, and from 3.13 gives such a child's pending calls to a thread that is
    gone: there nobody is to be asked."""
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert told.stdout.strip() == "all did", told.stderr
