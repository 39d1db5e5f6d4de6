"""The system's own threads and locks, also where gevent has put greenlets in their place.

gevent gives a hub, with two open files, to each thread that waits for one of its locks,
and keeps it when the thread ends; and a lock of its own that threads pass to and fro
may lose whoever waits. So what our threads wait with is from here, never from `threading`.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any
from weakref import ref

#: Where the application's greenlets run, as far as one of them has started a thread.
_application: ref[Any] | None = None
#: How often a greenlet looks whether a lock has become free.
_STEP_S = 0.001


def real(name: str, module: str = "_thread") -> Any:
    """What a module of the interpreter itself calls `name`."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return getattr(importlib.import_module(module), name)
    return monkey.get_original(module, name)


def start_thread(target: Callable[[], object]) -> None:
    """Run `target` on a thread that leaves signals to the application's threads.

    Raises: RuntimeError when the system gives no thread.

    The interpreter makes the thread's state before the thread is there. A thread that
    comes to the interpreter from C makes its own, without the GIL, and where tracemalloc
    ends at that moment the process crashes (CPython 3.11 to 3.13).
    """
    _remember_hub()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        real("start_new_thread")(target, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ident() -> int:
    """Of the calling thread, as the interpreter has it: a greenlet's is another."""
    return int(real("get_ident")())


def hub_here() -> Any:
    """Gevent's hub of the calling thread; None where it has none."""
    local = sys.modules.get("gevent._hub_local")
    return None if local is None else local.get_hub_if_exists()


def hub_elsewhere() -> Any:
    """The hub of the application, for a thread that has none; None without greenlets."""
    hub = None if _application is None else _application()
    gone = hub is None or hub.dead or hub.loop is None
    return None if gone or hub_here() is not None else hub


def _remember_hub() -> None:
    global _application
    hub = hub_here()
    monkey = sys.modules.get("gevent.monkey")
    if hub is None and monkey is not None and monkey.is_module_patched("threading"):
        # The main thread will have one as soon as it waits.
        is_main = real("get_native_id")() == os.getpid()
        hub = sys.modules["gevent"].get_hub() if is_main else None
    if hub is not None:
        _application = ref(hub)


def alive() -> list[threading.Thread]:
    """The threads that `threading` knows; takes no lock, which `enumerate` does."""
    return list(threading._active.values())  # type: ignore[attr-defined]


class Lock:
    """A lock of the system's, which threads wait for as for any other.

    A greenlet looks for it again and again, and lets the others run in between: its hub
    never stands still for it, and whoever has it may give way.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = real("allocate_lock")()

    def acquire(self, blocking: bool = True) -> bool:
        """Take it; false where somebody has it, and the caller does not want to wait."""
        if self._lock.acquire(False):
            return True
        if not blocking:
            return False
        give_way = _giving_way()
        if give_way is None:
            return bool(self._lock.acquire())
        while not self._lock.acquire(False):
            give_way(_STEP_S)
        return True

    def release(self) -> None:
        """Give it back, on any thread. Raises: RuntimeError where nobody has it."""
        self._lock.release()

    def __enter__(self) -> None:
        if not self._lock.acquire(False):
            self.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


def _giving_way() -> Callable[[float], object] | None:
    """How the calling greenlet lets others run; None on a thread that has no others."""
    hub = hub_here()
    if hub is None:
        return None
    gevent = sys.modules["gevent"]
    # The hub itself cannot give way: it is what others would run in.
    give_way: Callable[[float], object] = gevent.sleep
    return None if hub is gevent.getcurrent() else give_way
