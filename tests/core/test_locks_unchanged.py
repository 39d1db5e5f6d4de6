"""Locks under watch do what they did: errors, signals, subclasses, forks, switching."""

import _thread
import asyncio
import contextlib
import copy
import functools
import pickle
import queue
import signal
import sys
import threading
import time
import weakref
from concurrent.futures import thread as executors
from typing import Any

import pytest
from contending import (
    EARLY,
    counting,
    delay_s,
    hold,
    once_in_three,
    together,
    wait_by_acquire,
    wait_with_statement,
)

from stroboscope._core import _native
from stroboscope._core.contention import contention

pytestmark = pytest.mark.native
WATCHED = (
    *((type(EARLY["Lock"]), name) for name in ("acquire", "release", "__enter__")),
    *((type(EARLY["RLock"]), name) for name in ("acquire", "release", "__enter__")),
    (queue.SimpleQueue, "get"),
    (asyncio.Lock, "_wake_up_first"),
    (asyncio.Lock, "_get_loop"),
    (executors._WorkItem, "__init__"),
    (executors._WorkItem, "run"),
)


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
