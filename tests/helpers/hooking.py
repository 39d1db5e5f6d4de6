"""Everything that knobs of contention and captures put their hands on."""

import asyncio
import ctypes
import gc
import threading
from concurrent.futures import thread as executors
from typing import Any

from stroboscope._core import engine


def acquires_by() -> int:
    """The address of the C function behind a lock's `acquire`."""
    descriptor = type(threading.Lock()).acquire
    definition = ctypes.c_void_p.from_address(id(descriptor) + 40).value
    assert definition is not None
    return ctypes.c_void_p.from_address(definition + 8).value or 0


def of_captures() -> list[Any]:
    """What a capture has replaced."""
    return [
        list(gc.callbacks),
        vars(asyncio.events.Handle)["_run"],
        vars(asyncio.base_events.BaseEventLoop)["_call_soon"],
        vars(asyncio.base_events.BaseEventLoop)["_add_callback"],
        vars(asyncio.mixins._LoopBoundMixin)["_get_loop"],
        vars(executors._WorkItem)["run"],
        vars(executors._WorkItem)["__init__"],
        engine.hz,
        acquires_by(),
    ]


def hooks() -> list[Any]:
    """That and what a knob replaces."""
    return [*of_captures(), vars(asyncio.locks.Lock)["_wake_up_first"]]
