"""Suspended greenlets, where the application has greenlets at all.

Nobody keeps a list of them but the garbage collector: to find them takes a look at
every object it tracks, with the GIL held, 10 to 20 ms for a million of them. That is a
fraction of what a full collection takes, which the application has anyway.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from stroboscope._core import LABELS, engine
from stroboscope.formats.profile import Frame
from stroboscope.profiles.breath import Breath

DEPTH_CAP = 512
#: Greenlets read in one snapshot; the snapshot says so when there are more.
GREENLETS_CAP = 20_000
_CUT = Frame("", "[truncated]", 0, 0)


def find_greenlets() -> list[Any]:
    """All living greenlets, at most one more than the cap.

    Empty, and nothing was looked at, where no thread ever made one: a web application
    may have the module from a library that only sometimes needs it.
    """
    module = sys.modules.get("greenlet")
    kind = getattr(module, "greenlet", None)
    if not isinstance(kind, type):
        return []
    count = getattr(
        getattr(module, "_greenlet", None), "get_total_main_greenlets", None
    )
    if callable(count) and count() == 0:
        return []
    return engine.instances_of(kind, GREENLETS_CAP + 1)


def greenlets_at_rest(
    found: list[Any], breathe: Breath
) -> Iterator[tuple[Any, tuple[Frame, ...]]]:
    """Label cell and frames, leaf first, of each of them that is suspended."""
    same: dict[tuple[Frame, ...], tuple[Frame, ...]] = {}
    for greenlet in found:
        frame = greenlet.gr_frame  # None while it runs, before it began and at its end
        if isinstance(frame, FrameType):
            places = _walk(frame)
            yield _cell(greenlet), same.setdefault(places, places)
        breathe()


def _cell(greenlet: Any) -> Any:
    try:
        context = greenlet.gr_context
    except (AttributeError, ValueError):  # of another thread, running
        return None
    return context.get(LABELS) if context is not None else None


def _walk(frame: FrameType | None) -> tuple[Frame, ...]:
    stack: list[Frame] = []
    while frame is not None:
        if len(stack) == DEPTH_CAP:
            stack.append(_CUT)
            break
        code = frame.f_code
        first = code.co_firstlineno
        line = frame.f_lineno or first
        stack.append(Frame(code.co_filename, code.co_qualname, first, line))
        frame = frame.f_back
    return tuple(stack)
