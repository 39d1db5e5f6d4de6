"""Where threads were started: a count of `Thread.start` by the stack that called it.

On from when a process takes part. A start costs a microsecond more, of some fifty.
Threads that C code or `_thread` starts are not seen.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from typing import Any

from stroboscope._threads import Lock
from stroboscope.formats.profile import Frame, Profile, Sample, ValueType

_native: Any
try:
    from stroboscope._core import _native
except ImportError:
    _native = None

COUNT = ValueType("threadcreate", "count")
_BEYOND = Frame("", "[overflow]", 0, 0)
_lock = Lock()
_is_on = False
#: Ours and what it stands for, while ours is in place or below another's.
_ours: Any = None
_theirs: Any = None


def switch(is_on: bool) -> None:
    """Count starts from now on, or no more; what was counted stays. Cheap."""
    global _is_on, _ours, _theirs
    with _lock:
        _is_on = is_on and _native is not None
        if _is_on and _ours is None:
            _theirs = threading.Thread.start
            _ours = _counting(_theirs)
            threading.Thread.start = _ours  # type: ignore[method-assign]
        elif _ours is not None and not _is_on and threading.Thread.start is _ours:
            # Where somebody has wrapped ours it stays, and counts when it is on.
            threading.Thread.start = _theirs  # type: ignore[method-assign]
            _ours = None


def collect_births() -> Profile:
    """Threads started since counting began, in this process. Blocks for no one."""
    rows = _native.births() if _native is not None else []
    samples = [
        Sample(tuple(Frame(*frame) for frame in stack) or (_BEYOND,), (count,))
        for stack, count in rows
    ]
    return Profile(
        sample_types=(COUNT,),
        samples=samples,
        period_type=COUNT,
        period=1,
        time_ns=time.time_ns(),
        comments=() if _is_on else ("threadcreate: off; starts are not counted",),
        mapping=f"python{sys.version_info.major}.{sys.version_info.minor}",
    )


def _counting(original: Any) -> Any:
    # A function of Python's: it may be wrapped by others, taken off and put back.
    @functools.wraps(original)
    def start(self: threading.Thread) -> None:
        original(self)
        if _is_on:
            _native.births_note()

    return start
