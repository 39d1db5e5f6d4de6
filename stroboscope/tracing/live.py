"""Where the tasks that are alive stand now: the stacks of threads and asyncio tasks.

Places only. Blocks for some milliseconds per thousand tasks; belongs on a thread of ours.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable, Collection, Iterable
from contextvars import Context
from types import FrameType
from typing import Any

from stroboscope._core import LABELS, engine

DEPTH_CAP = 64
#: Stacks given of one task: a request may have hundreds of child tasks.
STACKS_CAP = 4

Places = list[str]


def stacks_of(
    serials: Collection[int],
    loops: Iterable[asyncio.AbstractEventLoop],
    breathe: Callable[[], object] = lambda: None,
) -> dict[int, list[Places]]:
    """Stacks of the threads and suspended asyncio tasks at work for these, by serial.

    Each is `function file:line`, leaf first.
    """
    found: dict[int, list[Places]] = {}
    wanted = frozenset(serials)
    if not wanted:
        return found
    cells, frames = engine.contexts(), sys._current_frames()
    for ident, cell in cells.items():
        if cell is not None and cell.task in wanted and ident in frames:
            _put(found, cell.task, _walked(frames[ident]))
    del frames
    for loop in loops:
        for task in _tasks(loop):
            context = _context(task)
            cell = context.get(LABELS) if context is not None else None
            # One that runs is its thread's; of one that waits its own chain is known.
            if cell is not None and cell.task in wanted:
                _put(found, cell.task, _awaits(task))
            breathe()
    return found


def _put(found: dict[int, list[Places]], serial: int, places: Places) -> None:
    stacks = found.setdefault(serial, [])
    if places and len(stacks) < STACKS_CAP:
        stacks.append(places)


def _walked(frame: FrameType | None) -> Places:
    places: Places = []
    while frame is not None and len(places) < DEPTH_CAP:
        places.append(_place(frame))
        frame = frame.f_back
    return places


def _awaits(task: asyncio.Task[Any]) -> Places:
    places: Places = []
    awaited: Any = task.get_coro()
    if getattr(awaited, "cr_running", False):
        return places  # its thread's stack tells more
    while awaited is not None and len(places) < DEPTH_CAP:
        frame = next(
            (
                found
                for name in ("cr_frame", "gi_frame", "ag_frame")
                if isinstance(found := getattr(awaited, name, None), FrameType)
            ),
            None,
        )
        if frame is None:
            break
        places.append(_place(frame))
        names = ("cr_await", "gi_yieldfrom", "ag_await")
        awaited = next(
            (one for name in names if (one := getattr(awaited, name, None))), None
        )
    return places[::-1]


def _place(frame: FrameType) -> str:
    code = frame.f_code
    line = frame.f_lineno or code.co_firstlineno
    return f"{code.co_qualname} {code.co_filename}:{line}"


def _tasks(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    for _ in range(3):
        try:
            return list(asyncio.all_tasks(loop))
        except RuntimeError:  # the loop's thread changed the set under us
            continue
    return []


def _context(task: asyncio.Task[Any]) -> Context | None:
    """The task's context; before 3.12 only the garbage collector knows it."""
    if sys.version_info >= (3, 12):
        return task.get_context()
    return next(
        (one for one in gc.get_referents(task) if isinstance(one, Context)), None
    )
