"""Reading what the C engine has interned, slice by slice.

The interned stacks are shared by all who count by stack and may be many: only those
that are asked for are read.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from typing import TypeVar

from stroboscope._core import _native
from stroboscope._core.capture import TRUNCATED, Frame
from stroboscope._core.flat import FlatStacks

T = TypeVar("T")

#: Items read per call, so that no call holds the GIL for more than about 0.2 ms.
SLICE = 500
#: Pause between slices: a waiting thread needs a moment to take the GIL. Beside a busy
#: loop each costs what the loop may keep it for, 5 ms.
BREATH_S = 0.0001
#: Stacks read per call, each of up to 128 numbers.
STACKS_SLICE = 50
#: Ids looked at between two pauses.
IDS_SLICE = 2000


def slices(total: int, read: Callable[[int, int], list[T]]) -> list[T]:
    """`total` items, by calls of `read(first, count)` with a breath between them."""
    items: list[T] = []
    for first in range(0, total, SLICE):
        if first:
            _native.sleep(BREATH_S)
        items += read(first, SLICE)
    return items


def places_of(
    ids: Iterable[int],
    *,
    of_ledgers: bool,
    first_place: int = 0,
    cut: int = TRUNCATED,
    empty: Iterable[int] = (),
) -> tuple[list[Frame], FlatStacks, dict[int, int]]:
    """The frames and stacks of interned stacks; each id's position in the stacks.

    Stacks hold positions in the frames, leaf first, counted from `first_place`, and
    `cut` for a cut root; `empty` stands for a stack without frames. Negative ids are no
    stacks and have no position.
    """
    at: dict[int, int] = {}
    for number, one in enumerate(ids):
        if one >= 0:
            at.setdefault(one, len(at))
        if number % IDS_SLICE == IDS_SLICE - 1:
            _native.sleep(BREATH_S)
    wanted = list(at)
    place = {TRUNCATED: cut}
    used: list[int] = []
    stacks = FlatStacks()
    for first in range(0, len(wanted), STACKS_SLICE):
        if first:
            _native.sleep(BREATH_S)
        some = wanted[first : first + STACKS_SLICE]
        numbers, ends = (array("i", raw) for raw in _native.stacks_of(of_ledgers, some))
        for frame in set(numbers).difference(place):
            place[frame] = first_place + len(used)
            used.append(frame)
        placed = array("i", map(place.__getitem__, numbers))
        begin = 0
        for end in ends:
            stacks.append(placed[begin:end] or empty)
            begin = end
    frames = slices(
        len(used), lambda i, n: _native.frames_of(of_ledgers, used[i : i + n])
    )
    return frames, stacks, at
