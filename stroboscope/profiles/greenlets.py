"""Suspended greenlets, where the application has greenlets at all.

Nobody keeps a list of them but the garbage collector: to find them takes a look at
every object it tracks, some 10 ms per million with the GIL held.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from stroboscope._core import LABELS
from stroboscope.formats.profile import Frame
from stroboscope.profiles.breath import Breath

DEPTH_CAP = 512
GREENLETS_CAP = 20_000
_CUT = Frame("", "[truncated]", 0, 0)


def greenlets_at_rest(breathe: Breath) -> Iterator[tuple[Any, tuple[Frame, ...]]]:
    """Label cell and frames, leaf first, of each suspended greenlet."""
    module = sys.modules.get("greenlet")
    kind = getattr(module, "greenlet", None)
    if not isinstance(kind, type):
        return
    same: dict[tuple[Frame, ...], tuple[Frame, ...]] = {}
    # Not `isinstance`: it asks an object's `__class__`, which a proxy answers with code
    # of the application's.
    found: list[Any] = [one for one in gc.get_objects() if issubclass(type(one), kind)]
    for greenlet in found[:GREENLETS_CAP]:
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
