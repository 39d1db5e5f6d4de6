"""Locks under watch: who waited, and who made them wait."""

import functools
import gc
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from contending import (
    EARLY,
    Clock,
    count,
    counting,
    delay_s,
    functions,
    hold,
    once_in_three,
    together,
    wait_by_acquire,
    wait_with_statement,
)

from stroboscope._core import _native

pytestmark = pytest.mark.native


def wait_with_timeout(lock: Any) -> None:
    assert lock.acquire(timeout=5)
    lock.release()


def wait_by_keywords(lock: Any) -> None:
    assert lock.acquire(blocking=True, timeout=-1)
    lock.release()


def clocked(wait: Callable[[Any], None], lock: Any, waited: list[float]) -> None:
    begin = time.perf_counter()
    wait(lock)
    waited.append(time.perf_counter() - begin)


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
@pytest.mark.parametrize("is_early", [True, False])
@pytest.mark.parametrize(
    "wait", [wait_with_statement, wait_by_acquire, wait_with_timeout, wait_by_keywords]
)
@once_in_three
def test_waits_are_charged_to_waiter_and_holder(
    kind: str, is_early: bool, wait: Callable[[Any], None]
) -> None:
    """By an independent clock, within 5 %; locks made before the switch as well."""
    waited: list[float] = []
    with counting() as counted:
        lock = EARLY[kind] if is_early else getattr(threading, kind)()
        held = threading.Event()
        holder = threading.Thread(target=hold, args=(lock, 0.4, held))
        holder.start()
        held.wait()
        together(*[functools.partial(clocked, wait, lock, waited)] * 3)
        holder.join()

    truth = sum(waited)
    assert truth > 0.8
    assert delay_s(counted.block, wait.__name__) == pytest.approx(truth, rel=0.05)
    assert count(counted.block, wait.__name__) == 3
    assert delay_s(counted.mutex, "hold") == pytest.approx(truth, rel=0.05)
    assert count(counted.mutex, "hold") == 1
    assert delay_s(counted.mutex, "wait_for") == 0
    assert _native.contention_waiting() == 0


@once_in_three
def test_who_holds_longer_is_charged_more() -> None:
    """Two holders after each other, one waiter: each is charged for its own time."""
    lock, order = threading.Lock(), threading.Event()
    clock = Clock()

    def first() -> None:
        with lock:
            order.set()
            time.sleep(0.12)

    def second() -> None:
        with clock("second waits"):
            lock.acquire()
        with clock("second holds"):
            time.sleep(0.06)
            lock.release()

    def patient() -> None:
        with clock("patient waits"):
            lock.acquire()
        lock.release()

    with counting() as counted:
        one = threading.Thread(target=first)
        one.start()
        order.wait()
        two = threading.Thread(target=second)
        two.start()
        time.sleep(0.02)
        three = threading.Thread(target=patient)
        three.start()
        for thread in (one, two, three):
            thread.join()

    # `second` waits for `first`; `patient` for both of them.
    took = clock.took
    for_first = took["second waits"] + took["patient waits"] - took["second holds"]
    assert for_first > 0.15
    assert delay_s(counted.mutex, "first") == pytest.approx(for_first, rel=0.05)
    by_second = delay_s(counted.mutex, "second")
    assert by_second == pytest.approx(took["second holds"], rel=0.05)


@once_in_three
def test_who_gives_up_is_charged_to_the_holder_all_the_same() -> None:
    """A wait that timed out made somebody wait."""
    lock, held = threading.Lock(), threading.Event()

    clock = Clock()

    def impatient() -> None:
        with clock("gives up"):
            assert not lock.acquire(timeout=0.05)

    with counting() as counted:
        holder = threading.Thread(target=hold, args=(lock, 0.15, held))
        holder.start()
        held.wait()
        together(impatient)
        holder.join()

    truth = pytest.approx(clock.took["gives up"], rel=0.05)
    assert delay_s(counted.block, "impatient") == truth
    assert delay_s(counted.mutex, "hold") == truth
    assert _native.contention_waiting() == 0


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_a_lock_that_dies_unreleased_leaves_no_record(kind: str) -> None:
    """Nor is another lock at its address charged."""
    with counting():
        for _ in range(50):
            lock = getattr(threading, kind)()
            lock.acquire()
            together(functools.partial(lock.acquire, timeout=0.001))
            del lock
        gc.collect()
        fresh = [getattr(threading, kind)() for _ in range(500)]
        with counting() as counted:
            for one in fresh:
                with one:
                    pass

    assert delay_s(counted.mutex, "test_a_lock_that_dies_unreleased") == 0
    assert _native.contention_waiting() == 0


def test_trying_is_no_contention() -> None:
    """A call that does not block is counted nowhere, however often it fails."""
    lock = threading.Lock()

    def poll() -> None:
        for _ in range(2000):
            assert not lock.acquire(False)
            assert not lock.acquire(blocking=False)
            assert not lock.acquire(timeout=0)

    with counting() as counted, lock:
        together(poll)

    assert count(counted.block, "poll") == 0
    assert count(counted.mutex) == 0


@once_in_three
def test_an_inner_release_of_an_rlock_charges_nobody() -> None:
    """Only the one that lets go is a release."""
    lock, held, clock = threading.RLock(), threading.Event(), Clock()

    def nested() -> None:
        with lock:
            held.set()
            for _ in range(5):
                inner()
            time.sleep(0.05)

    def waits() -> None:
        with clock("waits"):
            lock.acquire()
        lock.release()

    def inner() -> None:
        with lock:
            time.sleep(0.01)

    with counting() as counted:
        holder = threading.Thread(target=nested)
        holder.start()
        held.wait()
        together(waits)
        holder.join()

    assert count(counted.mutex, "inner") == 0
    truth = pytest.approx(clock.took["waits"], rel=0.05)
    assert delay_s(counted.mutex, "nested") == truth


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
@once_in_three
def test_conditions_wait_for_news_then_for_the_holder(kind: str) -> None:
    """The wait is block; getting the lock back is contention with its holder."""
    condition = threading.Condition(getattr(threading, kind)())
    waiting, clock = threading.Event(), Clock()

    def hears() -> None:
        with condition:
            waiting.set()
            with clock("hears"):
                condition.wait()

    def tells() -> None:
        waiting.wait()
        time.sleep(0.08)
        with condition:
            condition.notify()
            with clock("holds"):
                time.sleep(0.05)

    with counting() as counted:
        together(hears, tells)

    truth = pytest.approx(clock.took["hears"], rel=0.05)
    assert delay_s(counted.block, "hears") == truth
    held = delay_s(counted.mutex, "tells")
    assert held == pytest.approx(clock.took["holds"], rel=0.1)
    assert delay_s(counted.mutex) == held


@once_in_three
def test_what_python_builds_of_locks_is_seen() -> None:
    """Event, Semaphore, Barrier, Queue, SimpleQueue, join: block, and nobody's mutex."""
    event, semaphore = threading.Event(), threading.Semaphore(0)
    barrier, items = threading.Barrier(2), queue.Queue[int]()
    simple = queue.SimpleQueue[int]()
    clock = Clock()

    def on_event() -> None:
        with clock("on_event"):
            event.wait()

    def on_semaphore() -> None:
        with clock("on_semaphore"):
            semaphore.acquire()

    def on_barrier() -> None:
        with clock("on_barrier"):
            barrier.wait()

    def on_queue() -> None:
        with clock("on_queue"):
            items.get()

    def on_simple() -> None:
        with clock("on_simple"):
            simple.get()

    def lets_go() -> None:
        time.sleep(0.1)
        event.set()
        semaphore.release()
        barrier.wait()
        items.put(1)
        simple.put(1)

    waits = (on_event, on_semaphore, on_barrier, on_queue, on_simple)
    with counting() as counted:
        together(*waits, lets_go)

    for wait in waits:
        name = wait.__name__
        assert delay_s(counted.block, name) == pytest.approx(clock.took[name], rel=0.05)
    assert delay_s(counted.mutex) < 0.01


def test_plumbing_is_not_counted() -> None:
    """Starting threads, idle pool workers, logging under contention."""
    import logging
    from concurrent.futures import ThreadPoolExecutor

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            time.sleep(0.02)

    log = logging.getLogger("slow.one")
    log.propagate = False
    log.addHandler(Slow())
    with counting() as counted:
        with ThreadPoolExecutor(4) as pool:
            pool.submit(int).result()
            time.sleep(0.05)
        together(*[functools.partial(log.warning, "x")] * 3)

    names = functions(counted.mutex) | functions(counted.block)
    assert "Handler.acquire" not in names
    assert "_worker" not in names
    assert "Thread.start" not in names
