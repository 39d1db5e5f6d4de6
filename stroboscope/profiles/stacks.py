"""What every thread, asyncio task and greenlet is doing at this moment, with its labels.

Names of places only: no local, no argument and no user's object is ever read for its
text. Blocks for some milliseconds per thousand tasks; belongs on a thread of ours.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from stroboscope._core import AtRest, LabelCell, TaskRow, engine, task_sets
from stroboscope._core.at_rest import CREATED, RUNNING
from stroboscope._threads import alive, ident
from stroboscope.formats.names import plain
from stroboscope.formats.profile import Frame, Labels, Profile, Sample, ValueType
from stroboscope.formats.text import Block
from stroboscope.labels import labels_of
from stroboscope.profiles.ages import Ages
from stroboscope.profiles.breath import Breath
from stroboscope.profiles.greenlets import (
    GREENLETS_CAP,
    find_greenlets,
    greenlets_at_rest,
)

#: Tasks read in one snapshot; the snapshot says so when there are more.
TASKS_CAP = 20_000
CUT, LOST = Frame("", "[truncated]", 0, 0), Frame("", "[lost]", 0, 0)
_COUNT = ValueType("goroutine", "count")


@dataclass(frozen=True, slots=True)
class Stack:
    """One thread, task or greenlet; frames leaf first.

    `state` says what it does or waits for, as far as that is known. `age_s` is None
    where nothing is known of it; see `Ages`.
    """

    kind: str  # thread, task, greenlet
    name: str
    state: str
    labels: Labels
    frames: tuple[Frame, ...]
    age_s: float | None = None


class Stacks(Sequence[Stack]):
    """Stacks as columns: a `Stack` exists only while somebody looks at it.

    Ten thousand objects more would set off a full garbage collection, which an
    application of as many tasks feels for a tenth of a second.
    """

    def __init__(self) -> None:
        #: Distinct stacks and label sets; the columns hold indices into them.
        self.frames: list[tuple[Frame, ...]] = []
        self.label_sets: list[Labels] = [()]
        self.frames_of, self.labels_of = array("I"), array("I")
        self.kinds: list[str] = []
        self.names: list[str] = []
        self.states: list[str] = []
        self.ages_s = array("d")  # nan: unknown

    def add(
        self,
        kind: str,
        name: str,
        state: str,
        labels: int,
        frames: int,
        age_s: float = math.nan,
    ) -> None:
        """Append one, by the numbers of its labels and frames."""
        self.kinds.append(kind)
        self.names.append(name)
        self.states.append(state)
        self.labels_of.append(labels)
        self.frames_of.append(frames)
        self.ages_s.append(age_s)

    def __len__(self) -> int:
        return len(self.kinds)

    @overload
    def __getitem__(self, at: int) -> Stack: ...
    @overload
    def __getitem__(self, at: slice) -> list[Stack]: ...
    def __getitem__(self, at: int | slice) -> Stack | list[Stack]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        age_s = self.ages_s[at]
        return Stack(
            self.kinds[at],
            self.names[at],
            self.states[at],
            self.label_sets[self.labels_of[at]],
            self.frames[self.frames_of[at]],
            None if math.isnan(age_s) else age_s,
        )

    def blocks(self) -> Iterator[Block]:
        """All of them as the text forms take them; equal parts are one object."""
        for kind, name, state, age_s, labels, frames in zip(
            self.kinds,
            self.names,
            self.states,
            self.ages_s,
            self.labels_of,
            self.frames_of,
            strict=True,
        ):
            yield Block(
                kind,
                name,
                state,
                None if math.isnan(age_s) else age_s,
                self.label_sets[labels],
                self.frames[frames],
            )

    def older_than(self, age_s: float) -> Stacks:
        """Those that are known to be so old."""
        kept = Stacks()
        kept.frames, kept.label_sets = self.frames, self.label_sets
        for at, one_s in enumerate(self.ages_s):
            if one_s >= age_s:
                kept.add(
                    self.kinds[at],
                    self.names[at],
                    self.states[at],
                    self.labels_of[at],
                    self.frames_of[at],
                    one_s,
                )
        return kept


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All stacks, and what a reader must know to trust them."""

    stacks: Stacks
    notes: tuple[str, ...] = ()

    def older_than(self, age_s: float) -> Snapshot:
        """Those that are known to be so old."""
        kept = self.stacks.older_than(age_s)
        note = f"min_age={age_s:g}: {len(kept)} of {len(self.stacks)}"
        return Snapshot(kept, (*self.notes, note))


def snapshot(
    loops: Iterable[asyncio.AbstractEventLoop] = (), ages: Ages | None = None
) -> Snapshot:
    """Stacks of all threads but ours, of all tasks, and of suspended greenlets.

    `loops` are only needed from Python 3.14. Each stack was read in one piece; the
    stacks were read within the time of the call, not at one moment, and no task is in
    it twice. `ages` remembers from one snapshot to the next when a task was first seen.
    """
    began = time.monotonic()
    items = list(itertools.chain.from_iterable(map(list, task_sets(loops))))
    breathe = Breath()
    made = Stacks()
    reader = _Reader(made, ages or Ages())
    found = engine.walk(items[:TASKS_CAP], reader.see_task, breathe, described=True)
    reader.finish(found, breathe)
    searched = time.monotonic()
    greenlets = find_greenlets()
    search_ms = 1000 * (time.monotonic() - searched)
    reader.see_greenlets(greenlets[:GREENLETS_CAP], breathe)
    took_ms = 1000 * (time.monotonic() - began)
    notes = [f"read within {took_ms:.0f} ms, each stack in one piece"]
    if len(items) > TASKS_CAP:
        notes.append(f"tasks: {TASKS_CAP} of {len(items)}, no more are read at once")
    if greenlets:
        notes.append(f"greenlets found in {search_ms:.0f} ms, with the GIL held")
    if len(greenlets) > GREENLETS_CAP:
        notes.append(f"greenlets: no more than {GREENLETS_CAP} are read at once")
    if reader.lost:
        notes.append(f"stacks lost, tables full: {reader.lost}")
    return Snapshot(made, tuple(notes))


def to_profile(taken: Snapshot, now_ns: int) -> Profile:
    """The stacks as Go's goroutine profile; equal ones add up."""
    stacks, breathe = taken.stacks, Breath()
    counts: Counter[tuple[int, int, str]] = Counter()
    for row in zip(stacks.frames_of, stacks.labels_of, stacks.kinds, strict=True):
        counts[row] += 1
        breathe()
    samples = [
        Sample(
            stacks.frames[frames],
            (count,),
            (*stacks.label_sets[labels], ("kind", kind)),
        )
        for (frames, labels, kind), count in counts.items()
    ]
    return Profile(
        sample_types=(_COUNT,),
        samples=samples,
        period_type=_COUNT,
        period=1,
        time_ns=now_ns,
        comments=taken.notes,
        mapping=f"python{sys.version_info.major}.{sys.version_info.minor}",
    )


class _Reader:
    """Puts what a walk finds into columns; tasks first, while they are at hand."""

    def __init__(self, made: Stacks, ages: Ages) -> None:
        self.lost = 0
        self._made = made
        self._ages = ages
        self._now_ns = time.monotonic_ns()
        self._sets: dict[Labels, int] = {(): 0}
        self._by_cell: dict[int, int] = {}
        # The keys above are addresses: the cells must live as long.
        self._cells: list[LabelCell] = []

    def see_task(self, row: TaskRow) -> None:
        """All of a task but its frames, which `finish` adds."""
        age_ns = self._ages.age_ns(row.item, row.cell, self._now_ns)
        labels = self._labels(row.cell)
        self._made.add(
            "task", _task_name(row.task), _state(row), labels, 0, age_ns / 1e9
        )

    def finish(self, found: AtRest, breathe: Breath) -> None:
        """The frames of the tasks seen, and the threads."""
        self._ages.forget_others()
        made = self._made
        # TRUNCATED is -1: the last of the places.
        places = [*(Frame(*frame) for frame in found.frames), CUT]
        for stack in found.stacks:
            made.frames.append(tuple(places[at] for at in stack))
            breathe()
        made.frames.append((LOST,))
        for at, number in enumerate(found.tasks):
            made.frames_of[at] = number if number >= 0 else len(found.stacks)
            self.lost += number < 0
        own = engine.own_threads() | {ident()}
        names = {thread.ident: thread.name for thread in alive()}
        for row in found.threads:
            if row.ident not in own:
                name = plain(names.get(row.ident, ""), "thread")
                age_s = row.age_ns / 1e9 if row.age_ns >= 0 else math.nan
                labels = self._labels(row.cell)
                made.add("thread", name, row.state, labels, row.stack, age_s)

    def see_greenlets(self, greenlets: list[Any], breathe: Breath) -> None:
        """Those of them that are suspended."""
        numbers: dict[tuple[Frame, ...], int] = {}
        for cell, frames in greenlets_at_rest(greenlets, breathe):
            number = numbers.setdefault(frames, len(self._made.frames))
            if number == len(self._made.frames):
                self._made.frames.append(frames)
            labels = self._labels(cell)
            self._made.add("greenlet", "greenlet", "suspended", labels, number)

    def _labels(self, cell: LabelCell | None) -> int:
        if cell is None:
            return 0
        number = self._by_cell.get(id(cell))
        if number is None:
            labels = labels_of(cell).items
            number = self._sets.setdefault(labels, len(self._sets))
            if number == len(self._made.label_sets):
                self._made.label_sets.append(labels)
            self._by_cell[id(cell)] = number
            self._cells.append(cell)
        return number


def _task_name(task: Any) -> str:
    try:
        return plain(task.get_name(), "Task")
    except Exception:  # a task class of the application's
        return "Task"


def _state(row: TaskRow) -> str:
    if row.state == RUNNING:
        return "running"
    if row.state == CREATED:
        return "not begun"
    waiter = row.waiter
    if waiter is None:
        return "ready to run"
    if isinstance(waiter, asyncio.Task):
        return f'suspended on task "{_task_name(waiter)}"'
    name = plain(type(waiter).__name__, "a future").lstrip("_")
    return sys.intern(f"suspended on {name}")
