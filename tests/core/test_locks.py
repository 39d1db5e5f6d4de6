"""Locks under watch: who waited, who made them wait, and nothing else changed."""

import _thread
import asyncio
import contextlib
import copy
import functools
import gc
import pickle
import queue
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import thread as executors
from typing import Any

import pytest
from contending import (
    Clock,
    count,
    counting,
    delay_s,
    functions,
    once_in_three,
    together,
)

from stroboscope._core import _native
from stroboscope._core.contention import contention

pytestmark = pytest.mark.native
#: Made before anything is watched.
EARLY = {"Lock": threading.Lock(), "RLock": threading.RLock()}
WATCHED = (
    *((type(EARLY["Lock"]), name) for name in ("acquire", "release", "__enter__")),
    *((type(EARLY["RLock"]), name) for name in ("acquire", "release", "__enter__")),
    (queue.SimpleQueue, "get"),
    (asyncio.Lock, "_wake_up_first"),
    (asyncio.Lock, "_get_loop"),
    (executors._WorkItem, "__init__"),
    (executors._WorkItem, "run"),
)


def hold(lock: Any, seconds: float, held: threading.Event) -> None:
    with lock:
        held.set()
        time.sleep(seconds)


def wait_with_statement(lock: Any) -> None:
    with lock:
        pass


def wait_by_acquire(lock: Any) -> None:
    lock.acquire()
    lock.release()


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


@once_in_three
def test_an_exception_out_of_a_wait_is_what_it_was() -> None:
    """A signal handler that raises ends the wait, which counts as far as it went."""
    lock = threading.Lock()

    def raises(number: int, frame: object) -> None:
        raise KeyError("from the handler")

    previous = signal.signal(signal.SIGALRM, raises)
    try:
        with counting() as counted, lock:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyError, match="from the handler"):
                lock.acquire()
    finally:
        signal.signal(signal.SIGALRM, previous)

    assert delay_s(counted.block, raises.__name__) == 0
    mine = "test_an_exception_out_of_a_wait_is_what_it_was"
    assert delay_s(counted.block, mine) == pytest.approx(0.1, rel=0.1)


@once_in_three
def test_a_handled_signal_does_not_end_a_wait() -> None:
    """Nor its timeout: the rest of it is waited for."""
    lock, calls = threading.Lock(), []
    previous = signal.signal(signal.SIGALRM, lambda *_: calls.append(1))
    try:
        with counting(), lock:
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            begin = time.perf_counter()
            assert not lock.acquire(timeout=0.15)
            took = time.perf_counter() - begin
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)

    assert len(calls) >= 5
    assert took == pytest.approx(0.15, abs=0.05)


@pytest.mark.parametrize(
    "arguments",
    [
        {"timeout": -5},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"timeout": threading.TIMEOUT_MAX * 2},
        {"timeout": "1"},
        {"blocking": False, "timeout": 1},
        {"nonsense": 1},
    ],
)
@pytest.mark.parametrize("kind", ["Lock", "RLock"])
@pytest.mark.parametrize("is_held", [True, False])
def test_refusals_are_the_interpreters(
    kind: str, arguments: dict[str, Any], is_held: bool
) -> None:
    """The same exception and text, watched or not, whether the lock is free or not."""

    def refusal() -> str:
        lock = getattr(threading, kind)()
        if is_held:
            together(lock.acquire)
        with pytest.raises(
            (ValueError, TypeError, OverflowError)
        ) as caught:  # whatever it says without us
            lock.acquire(**arguments)
        return repr(caught.value)

    plain = refusal()
    with counting():
        assert refusal() == plain


def test_switching_off_leaves_nothing_behind() -> None:
    """Every method is the one that was there; locks of the time work on."""
    before = [vars(owner).get(name) for owner, name in WATCHED]
    kinds = [threading.Lock, threading.RLock, _thread.allocate_lock, queue.SimpleQueue]

    with counting():
        lock, rlock = threading.Lock(), threading.RLock()
        assert [
            threading.Lock,
            threading.RLock,
            _thread.allocate_lock,
            queue.SimpleQueue,
        ] == kinds
        assert type(lock) is type(EARLY["Lock"])
        assert type(rlock) is type(EARLY["RLock"])
        assert isinstance(weakref.ref(lock)(), _thread.LockType)
        with pytest.raises(TypeError, match="pickle"):
            pickle.dumps(lock)
        with pytest.raises(TypeError, match="pickle"):
            copy.copy(rlock)

    assert [vars(owner).get(name) for owner, name in WATCHED] == before
    with counting() as counted:
        pass
    with lock, rlock:
        pass
    assert not counted.mutex


@once_in_three
def test_a_subclass_of_rlock_is_watched_and_stays_what_it_is() -> None:
    """RLock may be subclassed, and its own methods are called."""

    class Mine(type(threading.RLock())):  # type: ignore[misc]
        entered = 0

        def acquire(self, *args: Any, **kwargs: Any) -> bool:
            self.entered += 1
            return bool(super().acquire(*args, **kwargs))

    lock, held = Mine(), threading.Event()
    with counting() as counted:
        holder = threading.Thread(target=hold, args=(lock, 0.1, held))
        holder.start()
        held.wait()
        together(functools.partial(wait_by_acquire, lock))
        holder.join()

    assert lock.entered == 1
    assert delay_s(counted.mutex, "hold") > 0.08


def test_all_three_types_can_be_watched_here() -> None:
    """On each interpreter we test; where not, the profile says which."""
    with counting():
        assert contention.unseen() == ()
    assert contention._watched == (True, True, True)


def test_thousand_switches_under_load() -> None:
    """By several threads at once, while others use locks of all kinds."""
    done = threading.Event()
    lock, rlock = threading.Lock(), threading.RLock()
    condition, items = threading.Condition(), queue.SimpleQueue[int]()
    entered = [0, 0]

    def uses() -> None:
        while not done.is_set():
            with lock:
                entered[0] += 1
                time.sleep(0)
            with rlock, rlock:
                entered[1] += 1
            with condition:
                condition.wait(0.0001)
            items.put(1)
            items.get()

    def switches() -> None:
        for turn in range(250):
            contention.set_mutex_fraction(turn % 3)
            contention.set_block_rate((turn * 7) % 5)

    users = [threading.Thread(target=uses) for _ in range(6)]
    for user in users:
        user.start()
    together(*[switches] * 4)
    contention.set_mutex_fraction(0)
    contention.set_block_rate(0)
    done.set()
    for user in users:
        user.join()

    assert min(entered) > 100
    assert not lock.locked()
    assert _native.contention_waiting() == 0
    with counting():
        pass


def test_a_forked_child_counts_from_zero_and_its_locks_work() -> None:
    """Though the parent forked while others waited."""
    import os

    lock, held = threading.Lock(), threading.Event()
    with counting():
        holder = threading.Thread(target=hold, args=(lock, 0.3, held))
        holder.start()
        held.wait()
        waiter = threading.Thread(target=wait_with_statement, args=(lock,))
        waiter.start()
        while _native.contention_waiting() == 0:
            time.sleep(0.001)
        if sys.version_info >= (3, 12):
            import warnings

            warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                assert _native.contention_waiting() == 0
                copied = _native.contention_copy("mutex")
                assert copied is not None
                assert not any(copied.column(2))
                assert not any(copied.column(3))
                mine = threading.Lock()
                with mine:
                    assert not mine.acquire(timeout=0.01)
                status = 0
            os._exit(status)
        _, status = os.waitpid(child, 0)
        holder.join()
        waiter.join()

    assert status == 0
