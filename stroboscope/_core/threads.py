"""The system's own threads, also where gevent has put greenlets in their place."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable
from typing import Any


def real(name: str, module: str = "_thread") -> Any:
    """What a module of the interpreter itself calls `name`."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is None:
        return getattr(importlib.import_module(module), name)
    return monkey.get_original(module, name)


def start(target: Callable[[], object]) -> None:
    """Run `target` on a thread that leaves signals to the application's threads.

    Raises: RuntimeError when the system gives no thread.

    The interpreter makes the thread's state before the thread is there. A thread that
    comes to the interpreter from C makes its own, without the GIL, and where tracemalloc
    ends at that moment the process crashes (CPython 3.11 to 3.13).
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        real("start_new_thread")(target, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
