"""Stalls that nobody could look at because the interpreter was held.

The signal handler of the thread that held it has left samples meanwhile; here they are
read back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from stroboscope._core import watching
from stroboscope.formats.profile import Labels
from stroboscope.formats.samples import Left
from stroboscope.labels import labels_of
from stroboscope.stalls.looks import is_own
from stroboscope.stalls.records import Stall

#: Live cells whose labels are worked out: while profiles are taken there are many.
_CELLS_CAP = 64
#: What this process's handler has left, newest first. Reads a file.
LeftBehind = Callable[[], list[Left]]


def nothing_left() -> list[Left]:
    """Where no file is kept."""
    return []


def explained(
    stall: Stall, left: LeftBehind, since_ns: int, known: Mapping[int, Labels]
) -> Stall:
    """The stall with whom the handler saw since a moment of the monotonic clock.

    `known` are labels by the serial of their cell, as they were while it lasted.
    """
    seen = [one for one in left() if one.is_holder and one.time_ns >= since_ns]
    if not seen:
        return stall
    last = seen[0]
    own = [frame for frame in last.frames if is_own(frame.file)] or last.frames
    return replace(
        stall,
        cause="held",
        labels=known.get(last.serial) or _shown(last),
        frame=own[0] if own else None,
        stack=last.frames,
        looks=len(seen),
        seen=sum(one.frames[:1] == last.frames[:1] for one in seen),
        note="the interpreter was held; seen by a signal",
    )


def sampled_labels() -> dict[int, Labels]:
    """The labels of live cells a sample was taken under, by serial; of some of many."""
    cells = watching.live_sampled()[:_CELLS_CAP]
    return {cell.serial: labels_of(cell).items for cell in cells}


def _shown(one: Left) -> Labels:
    return (("endpoint", one.endpoint),) if one.endpoint else ()
