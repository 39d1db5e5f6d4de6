"""The portable twin of the walk in `_core/src/rest.c`, frame objects and all.

Same interface as `NativeDriver.walk`. Another thread's context cannot be read here, so
threads have no labels; tasks have them.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar
from types import FrameType
from typing import Any

from stroboscope._core.at_rest import (
    CREATED,
    RUNNING,
    SUSPENDED,
    AtRest,
    TaskRow,
    ThreadRow,
)
from stroboscope._core.capture import TRUNCATED, Frame
from stroboscope._threads import ident

_DEPTH_MAX = 512
_LINKS_MAX = 4096


class _Numbers:
    """Positions of frames and stacks; fills an `AtRest`."""

    def __init__(self, found: AtRest) -> None:
        self._found = found
        self._frames: dict[Frame, int] = {}
        self._stacks: dict[tuple[int, ...], int] = {}

    def of(self, places: list[Frame], *, is_cut: bool) -> int:
        """The position of a stack, leaf first."""
        ids = []
        for place in places:
            number = self._frames.setdefault(place, len(self._frames))
            if number == len(self._found.frames):
                self._found.frames.append(place)
            ids.append(number)
        stack = (*ids, TRUNCATED) if is_cut else tuple(ids)
        number = self._stacks.setdefault(stack, len(self._stacks))
        if number == len(self._found.stacks):
            self._found.stacks.append(stack)
        return number


def walk(
    tasks: list[Any],
    see: Callable[[TaskRow], object],
    breathe: Callable[[], object],
    excluded: set[int],
    labels: ContextVar[Any],
) -> AtRest:
    """All threads but `excluded` and the caller's, and these tasks."""
    found = AtRest()
    numbers = _Numbers(found)
    frames = sys._current_frames()
    for one in frames.keys() - excluded - {ident()}:
        places, is_cut = _thread(frames[one])
        stack = numbers.of(places, is_cut=is_cut)
        found.threads.append(ThreadRow(one, stack, None, "", -1))
    del frames
    for item in tasks:
        task = item() if isinstance(item, weakref.ref) else item
        if task is not None and not task.done():
            row = _task(task, item, numbers, labels)
            if row is not None:
                found.tasks.append(row.stack)
                see(row)
        breathe()
    return found


def _thread(frame: FrameType | None) -> tuple[list[Frame], bool]:
    places: list[Frame] = []
    while frame is not None and len(places) < _DEPTH_MAX:
        places.append(_place(frame))
        frame = frame.f_back
    return places, frame is not None


def _task(
    task: Any, item: Any, numbers: _Numbers, labels: ContextVar[Any]
) -> TaskRow | None:
    chain = list(_chain(task.get_coro()))
    if not chain:
        return None
    outermost = task.get_coro()
    state = SUSPENDED
    if getattr(outermost, "cr_running", getattr(outermost, "gi_running", False)):
        state = RUNNING
    elif chain[0].f_lasti < 0:
        state = CREATED
    places = [_place(frame) for frame in reversed(chain)]
    stack = numbers.of(places[:_DEPTH_MAX], is_cut=len(places) > _DEPTH_MAX)
    context = _context(task)
    cell = context.get(labels) if context is not None else None
    waiter = getattr(task, "_fut_waiter", None)
    return TaskRow(stack, state, cell, task, waiter, item)


def _chain(awaited: Any) -> Iterator[FrameType]:
    """The frames of an await chain, outermost first."""
    for _ in range(_LINKS_MAX):
        frame = _first(awaited, ("cr_frame", "gi_frame", "ag_frame"))
        if not isinstance(frame, FrameType):
            return
        yield frame
        awaited = _first(awaited, ("cr_await", "gi_yieldfrom", "ag_await"))


def _first(awaited: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        found = getattr(awaited, name, None)
        if found is not None:
            return found
    return None


def _context(task: Any) -> Context | None:
    """The task's context; before 3.12 only the garbage collector knows it."""
    if sys.version_info >= (3, 12):
        context: Context = task.get_context()
        return context
    for one in gc.get_referents(task):
        if isinstance(one, Context):
            return one
    return None


def _place(frame: FrameType) -> Frame:
    code = frame.f_code
    line = frame.f_lineno or code.co_firstlineno
    return (code.co_filename, code.co_qualname, code.co_firstlineno, line)
