"""Counting contention: what is watched while a rate is above 0, and whose waits count.

Locks and `SimpleQueue` are watched in C, every one of them, whenever it was made
(`_core/src/locks.h`); what Python builds of locks is seen through them. asyncio's
primitives and `ThreadPoolExecutor` are watched by replacing the methods that pass by
only when something waits. At rate 0 all of it is as the interpreter made it.
"""

from __future__ import annotations

import asyncio.locks
import asyncio.mixins
import contextlib
import fnmatch
import os
import re
import sys
from concurrent.futures import thread as executors
from typing import Any

from stroboscope._core import engine
from stroboscope._core.replacing import REPLACED, Wrap
from stroboscope._threads import Lock, real

_native: Any
try:
    from stroboscope._core import _native
except ImportError:
    _native = None

#: Modules whose own waits are not counted, as patterns: the interpreter's bookkeeping,
#: idle workers of pools, and ourselves.
PLUMBING = (
    "_pyio",
    "anyio._backends.*",
    "anyio.to_thread",
    "asyncio.base_events",
    "asyncio.base_subprocess",
    "asyncio.locks",
    "asyncio.mixins",
    "asyncio.queues",
    "asyncio.sslproto",
    "asyncio.streams",
    "asyncio.unix_events",
    "concurrent.futures.*",
    "importlib.*",
    "logging",
    "logging.*",
    "multiprocessing.*",
    "queue",
    "stroboscope.*",
    "threading",
    "weakref",
    "zipimport",
)
_THROUGH, _FOR_NEWS = -1, -2
#: Our layers over methods: what is there for traces as well, and for totals alone.
_TIMED, _COUNTED = "contention timed", "contention counted"
#: In these modules, what others wait through: its caller decides. `Condition.wait` and
#: `Thread.join` wait for news and not for a holder: nobody is charged as one.
DOORS: dict[str, dict[str, int]] = {
    # A job waits for a thread of anyio's by waiting for a token of its limiter.
    "anyio._backends._asyncio": {
        "CapacityLimiter": _FOR_NEWS,
        "AsyncIOBackend.run_sync_in_worker_thread": _THROUGH,
        "Event": _FOR_NEWS,
    },
    "anyio.to_thread": {"run_sync": _THROUGH},
    "asyncio.locks": {
        "Lock": _THROUGH,
        "Event": _FOR_NEWS,
        "Condition": _FOR_NEWS,
        "Semaphore": _FOR_NEWS,
        "BoundedSemaphore": _FOR_NEWS,
        "Barrier": _FOR_NEWS,
        "_ContextManagerMixin": _THROUGH,
    },
    "asyncio.queues": {"Queue": _FOR_NEWS},
    "concurrent.futures._base": {
        "Future.result": _THROUGH,
        "Future.exception": _THROUGH,
        "wait": _THROUGH,
        "as_completed": _THROUGH,
        "_result_or_cancel": _THROUGH,
        "Executor.__exit__": _THROUGH,
        "Executor.map.<locals>.result_iterator": _THROUGH,
    },
    "concurrent.futures.thread": {"ThreadPoolExecutor.shutdown": _THROUGH},
    "queue": {"Queue": _THROUGH, "_PySimpleQueue": _THROUGH},
    "threading": {
        "Condition": _THROUGH,
        "Condition.wait": _FOR_NEWS,
        "Event": _THROUGH,
        "Semaphore": _THROUGH,
        "BoundedSemaphore": _THROUGH,
        "Barrier": _THROUGH,
        "_RLock": _THROUGH,
        "Thread.join": _THROUGH,
        "Thread._wait_for_tstate_lock": _FOR_NEWS,
    },
}


def sites() -> dict[str, dict[str, int]]:
    """Of each loaded file of plumbing, its doors by qualified name."""
    is_plumbing = re.compile("|".join(map(fnmatch.translate, PLUMBING))).match
    found: dict[str, dict[str, int]] = {}
    for name, module in list(sys.modules.items()):
        if is_plumbing(name):
            file = getattr(module, "__file__", None)
            for one in (file, f"<frozen {name}>"):
                if isinstance(one, str):
                    found[one] = _doors(name, module)
    # The import system's own modules are loaded under two names.
    for name in ("_bootstrap", "_bootstrap_external"):
        found[f"<frozen importlib.{name}>"] = {}
    return found


def _doors(name: str, module: object) -> dict[str, int]:
    """The doors of a module; those of a class are all its methods."""
    doors: dict[str, int] = {}
    for door, kind in DOORS.get(name, {}).items():
        owner = getattr(module, door, None)
        if isinstance(owner, type):
            names = [getattr(one, "__qualname__", "") for one in vars(owner).values()]
            doors.update(dict.fromkeys(filter(None, names), kind))
        else:
            doors[door] = kind
    return doors


class Contention:
    """The one switch of a process. Safe from any thread; never blocks for long."""

    def __init__(self) -> None:
        self._mutex_fraction = self._block_rate_ns = 0
        self._is_traced = False
        self._watched: tuple[bool, bool, bool] | None = None
        self._lock = Lock()

    @property
    def mutex_fraction(self) -> int:
        """One in so many contentions is charged to its holder; 0: none."""
        return self._mutex_fraction

    @property
    def block_rate_ns(self) -> int:
        """One wait per so many nanoseconds waited is counted; 0: none."""
        return self._block_rate_ns

    def set_mutex_fraction(self, fraction: int) -> None:
        """Count one in `fraction` contentions from now on; 0 none."""
        with self._lock:
            self._set(fraction, self._block_rate_ns)

    def set_block_rate(self, rate_ns: int) -> None:
        """Count one wait per `rate_ns` waited from now on; 0 none."""
        with self._lock:
            self._set(self._mutex_fraction, rate_ns)

    def set_traced(self, is_traced: bool) -> None:
        """Watch waits of threads for a trace, whether or not they are counted."""
        with self._lock:
            self._is_traced = is_traced
            self._set(self._mutex_fraction, self._block_rate_ns)

    def copy(self, name: str) -> Any:
        """The totals of `mutex` or `block` at this moment; None where there are none."""
        if _native is None:
            return None
        with self._lock:
            if self._mutex_fraction or self._block_rate_ns:
                self._tell()  # modules may have been loaded since
        return _native.contention_copy(name)

    def forget(self) -> None:
        """Drop all totals, where nothing is counted: for tests."""
        if self._watched is not None and not (
            self._mutex_fraction or self._block_rate_ns
        ):
            _native.contention_forget()

    def unseen(self) -> tuple[str, ...]:
        """What is not counted in this process though it waits, as sentences."""
        if _native is None:
            return ("without the C engine no contention is counted",)
        found = []
        names = ("threading.Lock", "threading.RLock", "queue.SimpleQueue")
        if self._watched is not None:
            found = [
                f"{name} cannot be watched in this interpreter"
                for name, is_watched in zip(names, self._watched, strict=True)
                if not is_watched
            ]
        monkey = sys.modules.get("gevent.monkey")
        if monkey is not None and monkey.is_module_patched("threading"):
            found.append("greenlets wait for gevent's own locks, which are not counted")
        return tuple(found)

    def _after_fork(self) -> None:
        # The child counts from zero, at the rates of its parent, and takes no trace.
        self._lock = Lock()
        if self._is_traced:
            self.set_traced(False)

    def _set(self, mutex_fraction: int, block_rate_ns: int) -> None:
        self._mutex_fraction, self._block_rate_ns = mutex_fraction, block_rate_ns
        if _native is None:
            return
        is_counted = mutex_fraction > 0 or block_rate_ns > 0
        is_on = is_counted or self._is_traced
        if not is_on and self._watched is None:
            return
        if self._watched is None:
            engine.register()
            os.register_at_fork(after_in_child=self._after_fork)
            self._watched = _native.locks_attach(*_real_types())
        self._tell()
        _native.locks_switch(is_on)
        if is_on:
            self._watch_asyncio()
        else:
            REPLACED.take(_TIMED)
        if is_counted:
            self._count_jobs()
        else:
            REPLACED.take(_COUNTED)

    def _tell(self) -> None:
        rates = self._mutex_fraction or self._block_rate_ns
        found = sites() if rates or self._is_traced else {}
        _native.contention_set(self._mutex_fraction, self._block_rate_ns, found)

    def _watch_asyncio(self) -> None:
        bound, lock = asyncio.mixins._LoopBoundMixin, asyncio.locks.Lock
        _put(bound, "_get_loop", _TIMED, lambda f: _native.wrap_get_loop(f, lock))

    def _count_jobs(self) -> None:
        lock, item = asyncio.locks.Lock, executors._WorkItem
        _put(lock, "_wake_up_first", _COUNTED, _native.wrap_wake_up)
        _put(item, "__init__", _COUNTED, _native.wrap_work_item)
        _put(item, "run", _COUNTED, _native.wrap_work_run)


def _put(owner: type, name: str, by: str, wrap: Wrap) -> None:
    with contextlib.suppress(KeyError):  # an interpreter that has another one
        REPLACED.put(owner, name, by, wrap)


def _real_types() -> tuple[type, type, type]:
    """The interpreter's own types, also where gevent has put its own in their place."""
    lock = real("allocate_lock")
    rlock = real("RLock")
    return type(lock()), type(rlock()), real("SimpleQueue", "_queue")


contention = Contention()
