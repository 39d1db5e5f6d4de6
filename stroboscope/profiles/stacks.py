"""What every thread and asyncio task is doing at this moment, with its labels.

Names of places only: no local, no argument and no user's object is ever read for its
text. Blocks for some milliseconds per thousand tasks; belongs on a thread of ours.
"""

from __future__ import annotations

import asyncio
import gc
import re
import sys
import threading
from collections.abc import Iterable
from contextvars import Context
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from stroboscope._core import LABELS, engine
from stroboscope.formats.profile import Frame, Labels, Profile, Sample, ValueType
from stroboscope.labels import labels_of
from stroboscope.profiles.breath import Breath

DEPTH_CAP = 512
TASKS_CAP = 20_000
_CUT = Frame("", "[truncated]", 0, 0)
_NAME = re.compile(r"[A-Za-z0-9_.:() -]{1,64}")
_COUNT = ValueType("goroutine", "count")


@dataclass(frozen=True, slots=True)
class Stack:
    """One thread or task; frames leaf first."""

    kind: str  # thread, task
    name: str
    state: str  # for a task: running, suspended; for a thread: running, in C
    labels: Labels
    frames: tuple[Frame, ...]


def snapshot(loops: Iterable[asyncio.AbstractEventLoop] = ()) -> list[Stack]:
    """Stacks of all threads but ours, and of the tasks of these loops."""
    breathe = Breath()
    stacks = _threads()
    for loop in loops:
        for task in _tasks(loop)[: TASKS_CAP - len(stacks)]:
            stack = _task(task)
            if stack is not None:
                stacks.append(stack)
            breathe()
    return stacks


def to_profile(stacks: list[Stack], now_ns: int, comments: tuple[str, ...]) -> Profile:
    """The stacks as Go's goroutine profile; equal ones add up."""
    samples = [
        Sample(stack.frames, (1,), (*stack.labels, ("kind", stack.kind)))
        for stack in stacks
    ]
    return Profile(
        sample_types=(_COUNT,),
        samples=samples,
        period_type=_COUNT,
        period=1,
        time_ns=now_ns,
        comments=comments,
        mapping=f"python{sys.version_info.major}.{sys.version_info.minor}",
    )


def _threads() -> list[Stack]:
    contexts = engine.contexts()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = engine.own_threads() | {threading.get_ident()}
    found = []
    frames = sys._current_frames()
    for ident, frame in frames.items():
        if ident not in own:
            name = _named(names.get(ident, ""), "thread")
            labels = labels_of(contexts.get(ident)).items
            found.append(Stack("thread", name, "", labels, _walk(frame)))
    del frames
    return found


def _tasks(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    for _ in range(3):
        try:
            return list(asyncio.all_tasks(loop))
        except RuntimeError:  # the loop's thread changed the set under us
            continue
    return []


def _task(task: asyncio.Task[Any]) -> Stack | None:
    frames: list[Frame] = []
    awaited: Any = task.get_coro()
    while awaited is not None and len(frames) < DEPTH_CAP:
        frame = _frame_of(awaited)
        if frame is None:
            break
        frames.append(_place(frame.f_code, frame.f_lineno))
        awaited = _awaited(awaited)
    if not frames:
        return None
    context = _context(task)
    cell = context.get(LABELS) if context is not None else None
    return Stack(
        "task",
        _named(task.get_name(), "Task"),
        "suspended" if awaited is None else "waiting",
        labels_of(cell).items,
        tuple(reversed(frames)),
    )


def _frame_of(awaited: Any) -> FrameType | None:
    for name in ("cr_frame", "gi_frame", "ag_frame"):
        frame = getattr(awaited, name, None)
        if isinstance(frame, FrameType):
            return frame
    return None


def _awaited(awaited: Any) -> Any:
    for name in ("cr_await", "gi_yieldfrom", "ag_await"):
        following = getattr(awaited, name, None)
        if following is not None:
            return following
    return None


def _context(task: asyncio.Task[Any]) -> Context | None:
    """The task's context; before 3.12 only the garbage collector knows it."""
    if sys.version_info >= (3, 12):
        return task.get_context()
    for one in gc.get_referents(task):
        if isinstance(one, Context):
            return one
    return None


def _walk(frame: FrameType | None) -> tuple[Frame, ...]:
    stack: list[Frame] = []
    while frame is not None:
        if len(stack) == DEPTH_CAP:
            stack.append(_CUT)
            break
        stack.append(_place(frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(stack)


def _place(code: CodeType, line: int | None) -> Frame:
    first = code.co_firstlineno
    return Frame(code.co_filename, code.co_qualname, first, line or first)


def _named(name: str, kind: str) -> str:
    """Names are the application's: one that is no plain name may hold anything."""
    return name if _NAME.fullmatch(name) else kind
