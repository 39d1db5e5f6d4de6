"""Reading what the C engine has interned, slice by slice.

The interned stacks are shared by all who count by stack and may be many: only those
that are asked for are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from stroboscope._core import _native
from stroboscope._core.capture import Frame

T = TypeVar("T")

#: Items read per call, so that no call holds the GIL for more than about 0.2 ms.
SLICE = 500
#: Pause after each slice: a waiting thread needs a moment to take the GIL.
BREATH_S = 0.0001


def slices(total: int, read: Callable[[int, int], list[T]]) -> list[T]:
    """`total` items, by calls of `read(first, count)` with a breath between them."""
    items: list[T] = []
    for first in range(0, total, SLICE):
        items += read(first, SLICE)
        _native.sleep(BREATH_S)
    return items


def places_of(
    ids: Iterable[int], *, of_ledgers: bool
) -> tuple[list[Frame], list[tuple[int, ...]], dict[int, int]]:
    """The frames and stacks of interned stacks; each id's position in the stacks.

    Stacks hold positions in the frames, leaf first, `TRUNCATED` for a cut. Negative
    ids are no stacks and have no position.
    """
    at: dict[int, int] = {}
    for one in ids:
        if one >= 0:
            at.setdefault(one, len(at))
    wanted = list(at)
    interned = slices(
        len(wanted), lambda i, n: _native.stacks_of(of_ledgers, wanted[i : i + n])
    )
    place = {-1: -1}  # TRUNCATED is the same here and there
    used: list[int] = []
    stacks: list[tuple[int, ...]] = []

    def renumber(first: int, count: int) -> list[tuple[int, ...]]:
        for stack in interned[first : first + count]:
            for frame in stack:
                if frame not in place:
                    place[frame] = len(used)
                    used.append(frame)
            stacks.append(tuple(place[frame] for frame in stack))
        return []

    slices(len(interned), renumber)
    frames = slices(
        len(used), lambda i, n: _native.frames_of(of_ledgers, used[i : i + n])
    )
    return frames, stacks, at
