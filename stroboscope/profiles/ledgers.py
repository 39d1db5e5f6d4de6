"""Totals that the C engine keeps by stack and labels, as samples.

A running request learns its labels late. What it has caused so far is counted once it
ends, so that the total of each set of labels only ever grows; columns that may fall
again (what is in use) show it at once, under what is known.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection
from typing import Any, Protocol

from stroboscope._core import LabelCell
from stroboscope.formats.profile import Columns, Frame, Labels, drain
from stroboscope.labels import TABLE, labels_of
from stroboscope.labels.scope import is_settled
from stroboscope.labels.sets import extend
from stroboscope.profiles.breath import Breath

_CUT = Frame("", "[truncated]", 0, 0)
_OVERFLOW = Frame("", "[overflow]", 0, 0)
#: A thread in C code, under no Python function: a sample has to have a place.
_OUTSIDE = Frame("", "[no python frame]", 0, 0)
_OWN_FRAMES = (_CUT, _OVERFLOW, _OUTSIDE)


class Copy(Protocol):
    """A ledger at one moment: `_native.LedgerCopy`."""

    @property
    def owners(self) -> list[tuple[str, Any, int]]:
        """(kind, object, position of the parent), parents first."""

    def __len__(self) -> int:
        """How many rows."""

    def column(self, number: int, /) -> bytes:
        """int64 of all rows: 0 stack or -1, 1 position in `owners`, then the values."""


def keep_labels(label_sets: int) -> None:
    """Have ledgers keep at most so many sets of labels apart, from now on."""
    from stroboscope._core import _native

    _native.configure_owners(extend, TABLE.overflow.items, label_sets)


def to_columns(copy: Copy, width: int, growing: Collection[int]) -> Columns:
    """The rows with their labels, equal ones added up.

    `growing` are the columns that count only what has its final labels. Blocks for
    some milliseconds per thousand rows, with breaths; belongs on a thread of ours.
    """
    from stroboscope._core.places import places_of  # a copy: then C is there

    breathe = Breath()
    stack_ids, owners, *values = (
        array("q", copy.column(number)) for number in range(2 + width)
    )
    places, stacks, at = places_of(
        stack_ids,
        of_ledgers=True,
        first_place=len(_OWN_FRAMES),
        cut=_OWN_FRAMES.index(_CUT),
        empty=(_OWN_FRAMES.index(_OUTSIDE),),
    )
    frames = [*_OWN_FRAMES, *(Frame(*place) for place in places)]
    overflow = len(stacks)
    stacks.append((_OWN_FRAMES.index(_OVERFLOW),))
    numbers, label_sets, settled = _labels(copy.owners, breathe)
    made = Columns(frames, stacks, label_sets, width)
    rows: dict[int, int] = {}
    for row, owner in enumerate(owners):
        total = [column[row] for column in values]
        if not settled[owner]:
            for column in growing:
                total[column] = 0
        if any(total):
            stack = at.get(stack_ids[row], overflow)
            made.put(rows, stack, numbers[owner], total)
        breathe()
    for done in (rows, at):
        drain(done, breathe)
    return made


def _labels(
    owners: list[tuple[str, Any, int]], breathe: Breath
) -> tuple[list[int], list[Labels], list[bool]]:
    """Of each owner the number of its labels, the label sets, and what is final."""
    sets: dict[Labels, int] = {}
    known: list[Labels] = []
    numbers: list[int] = []
    settled: list[bool] = []
    for kind, thing, parent in owners:  # parents come first
        if kind == "live":
            cell = thing if isinstance(thing, LabelCell) else None
            items, is_final = labels_of(cell).items, is_settled(cell)
        elif kind == "pending":
            items, is_final = extend(known[parent], thing), settled[parent]
        else:
            items, is_final = thing, True
        known.append(items)
        settled.append(is_final)
        numbers.append(sets.setdefault(items, len(sets)))
        breathe()
    return numbers, list(sets), settled
