"""A part of a profile: samples, frames and labels chosen as pprof chooses them.

The options are pprof's, in name, meaning and order: pseudo frames from labels, then
samples and frames by name, then samples by label, then labels by key. An option may be
given several times: then all of them have to hold.
Source: google/pprof internal/driver (driver_focus.go, tagroot.go), profile/filter.go.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from stroboscope.errors import PatternError
from stroboscope.formats.patterns import Pattern, Work
from stroboscope.formats.pprof import clean
from stroboscope.formats.profile import Columns, Frame, Labels, Profile, columns, drain

OPTIONS: Mapping[str, str] = {
    "focus": "samples with a frame whose function or file matches",
    "ignore": "no samples with a frame that matches",
    "show": "only frames that match",
    "hide": "no frames that match",
    "tagfocus": "samples with the label: key=regex, or a regex for key:value",
    "tagignore": "no samples with the label",
    "tagshow": "only labels whose key matches",
    "taghide": "no labels whose key matches",
    "tagroot": "keys of labels that become the outermost frames",
    "tagleaf": "keys of labels that become the innermost frames",
}
#: How often one option may be given.
TIMES_CAP = 8
KEYS_CAP = 8
#: Instructions of all patterns of one request: 12 MB.
SIZE_CAP = 20_000
#: What pprof takes for a range of numbers and not for a regex: `128kb:256kb`, `:1ms`. A
#: bare number it takes for one too, so `status=5xx` finds nothing there; all labels here
#: are text, and here that is a regex. Source: parseTagFilterRange in driver_focus.go.
_BOUND = "[+-]?[0-9]+(?:[A-Za-z]+)?"
_RANGE = re.compile(f"{_BOUND}:|:{_BOUND}|{_BOUND}:{_BOUND}", re.ASCII)
_RANGE_NOTE = "{}={} is a range of numbers, and no label here is a number"
_Meets = Callable[[Labels], bool]


def _no_breath() -> None:
    pass


class _Python(NamedTuple):
    """The mapping of Python's code, and the places of the frames that are in it."""

    mapping: str
    places: set[int]


class Slicer:
    """Options of one request, checked; then applied to a profile, once.

    `wanted` are pairs of an option's name and its value; empty values mean nothing, as
    in pprof. `breathe` is called all along, for a caller who shares the GIL with an
    application. Raises: PatternError with the option and what is wrong with it.
    """

    def __init__(
        self,
        wanted: Iterable[tuple[str, str]],
        breathe: Callable[[], None] = _no_breath,
    ) -> None:
        self.wanted = tuple((name, value) for name, value in wanted if value)
        self._breathe = breathe
        self._work, self._size = Work(), 0
        self._notes: list[str] = []
        times = Counter(name for name, _ in self.wanted)
        for name, count in times.items():
            if name not in OPTIONS:
                raise PatternError(f"no option {name!r:.40}")
            if count > TIMES_CAP:
                raise PatternError(f"{name}: allowed {TIMES_CAP} times")
        by_name = ("focus", "ignore", "show", "hide", "tagshow", "taghide")
        self._names = {name: self._patterns(name) for name in by_name}
        self._tagfocus = [self._meets("tagfocus", v) for v in self._values("tagfocus")]
        self._tagignore = [
            self._meets("tagignore", v) for v in self._values("tagignore")
        ]
        self._roots, self._leaves = self._keys("tagroot"), self._keys("tagleaf")

    def __bool__(self) -> bool:
        return bool(self.wanted)

    def apply(self, profile: Profile) -> Profile:
        """The part of it; samples that have become equal add up.

        Raises: PatternError when its patterns are too costly for the names in it.
        """
        if not self.wanted:
            return profile
        width = len(profile.sample_types)
        table = columns(profile.samples, width, self._breathe)
        if self._roots or self._leaves:
            table = self._with_pseudo_frames(table)
        stacks = self._stacks(table, self._python_frames(profile, table))
        label_sets = self._label_sets(table)
        changes = {"show", "hide", "tagshow", "taghide"}
        is_changed = any(name in changes for name, _ in self.wanted)
        keep = self._added if is_changed else self._kept
        sliced = keep(table, stacks, label_sets)
        sliced_by = (f"sliced: {name}={value}" for name, value in self.wanted)
        notes = (*sliced_by, *self._notes)
        return replace(profile, samples=sliced, comments=(*profile.comments, *notes))

    def _values(self, name: str) -> list[str]:
        return [value for one, value in self.wanted if one == name]

    def _patterns(self, name: str) -> list[_Names]:
        return [self._asked(name, v) for v in self._values(name)]

    def _asked(self, name: str, text: str) -> _Names:
        self._breathe()
        try:
            pattern = Pattern(text, self._breathe, self._work)
            self._size += pattern.size
            if self._size > SIZE_CAP:
                raise PatternError("the patterns are too large together")
        except PatternError as error:
            raise PatternError(f"{name}: {error}") from None
        return _Names(pattern, self._breathe)

    def _keys(self, name: str) -> list[str]:
        keys = [key for v in self._values(name) for key in v.split(",") if key]
        if len(keys) > KEYS_CAP:
            raise PatternError(f"{name}: allowed {KEYS_CAP} keys")
        return keys

    def _meets(self, name: str, text: str) -> _Meets:
        key, equals, value = text.partition("=")
        if not equals:
            key, value = "", text
        if _RANGE.fullmatch(value):
            self._notes.append(_RANGE_NOTE.format(name, text))
            return lambda _: False  # pprof looks at labels that are numbers: none is
        tests = [self._asked(name, part) for part in value.split(",")]
        if not key:
            return lambda labels: all(
                any(test(f"{k}:{v}") for k, v in labels) for test in tests
            )
        return lambda labels: any(
            test(v) for k, v in labels if k == key for test in tests
        )

    def _with_pseudo_frames(self, table: Columns) -> Columns:
        frames = dict.fromkeys(table.frames)
        for labels in table.label_sets:
            frames.update(dict.fromkeys(_pseudo(labels, self._roots)))
            frames.update(dict.fromkeys(_pseudo(labels, self._leaves)))
            self._breathe()
        places = {frame: at for at, frame in enumerate(frames)}
        old = [places[frame] for frame in table.frames]
        stacks: dict[tuple[int, ...], int] = {}
        made = Columns([*frames], [], table.label_sets, len(table.values))
        for at, stack in enumerate(table.stack_of):
            labels = table.label_sets[table.labels_of[at]]
            whole = (
                *(places[frame] for frame in _pseudo(labels, self._leaves)),
                *(old[frame] for frame in table.stacks[stack]),
                *(places[frame] for frame in _pseudo(labels, self._roots)),
            )
            number = stacks.setdefault(whole, len(stacks))
            made.add(number, table.labels_of[at], [c[at] for c in table.values])
            self._breathe()
        made.stacks.extend(stacks)
        return made

    def _python_frames(self, profile: Profile, table: Columns) -> _Python:
        """Those that are in the mapping of Python's code.

        A native frame is in its library's, whose path is its file; a label's in none.
        """
        keys = {*self._roots, *self._leaves}
        places: set[int] = set()
        for at, frame in enumerate(table.frames):
            is_label = frame.file in keys and not frame.line
            if not is_label and profile.native_mapping_of(frame) is None:
                places.add(at)
            self._breathe()
        return _Python(profile.mapping, places)

    def _stacks(self, table: Columns, python: _Python) -> list[tuple[int, ...] | None]:
        """Each stack as it is left, None where its samples go."""
        ignored = [f for one in self._names["ignore"] for f in one.of(table, python)]
        focused = [one.of(table, python) for one in self._names["focus"]]
        hidden = {f for one in self._names["hide"] for f in one.of(table, python)}
        for one in self._names["show"]:
            hidden |= set(range(len(table.frames))) - one.of(table, python)
        without = set(ignored)
        left: list[tuple[int, ...] | None] = []
        for stack in table.stacks:
            self._breathe()
            if not without.isdisjoint(stack) or any(
                one.isdisjoint(stack) for one in focused
            ):
                left.append(None)
                continue
            kept = tuple(f for f in stack if f not in hidden) if hidden else stack
            left.append(kept or None)
        return left

    def _label_sets(self, table: Columns) -> list[Labels | None]:
        """Each label set as it is left, None where its samples go."""
        left: list[Labels | None] = []
        for labels in table.label_sets:
            self._breathe()
            is_in = all(meets(labels) for meets in self._tagfocus)
            if not is_in or any(meets(labels) for meets in self._tagignore):
                left.append(None)
                continue
            shown = tuple((k, v) for k, v in labels if self._shows(k))
            left.append(labels if len(shown) == len(labels) else shown)
        return left

    def _shows(self, key: str) -> bool:
        names = self._names
        return all(one(key) for one in names["tagshow"]) and not any(
            one(key) for one in names["taghide"]
        )

    def _kept(
        self,
        table: Columns,
        stacks: list[tuple[int, ...] | None],
        label_sets: list[Labels | None],
    ) -> Columns:
        """The samples left, as they were: no two of them have become equal."""
        made = Columns(table.frames, table.stacks, table.label_sets, len(table.values))
        for at, (s, n) in enumerate(zip(table.stack_of, table.labels_of, strict=True)):
            self._breathe()
            if stacks[s] is not None and label_sets[n] is not None:
                made.add(s, n, [column[at] for column in table.values])
        return made

    def _added(
        self,
        table: Columns,
        stacks: list[tuple[int, ...] | None],
        label_sets: list[Labels | None],
    ) -> Columns:
        """The samples left, with what is left of their frames and labels."""
        stack_numbers: dict[tuple[int, ...], int] = {}
        label_numbers: dict[Labels, int] = {}
        made = Columns(table.frames, [], [], len(table.values))
        rows: dict[int, int] = {}
        for at, (s, n) in enumerate(zip(table.stack_of, table.labels_of, strict=True)):
            self._breathe()
            stack, labels = stacks[s], label_sets[n]
            if stack is None or labels is None:
                continue
            made.put(
                rows,
                stack_numbers.setdefault(stack, len(stack_numbers)),
                label_numbers.setdefault(labels, len(label_numbers)),
                [column[at] for column in table.values],
            )
        made.stacks.extend(stack_numbers)
        made.label_sets += label_numbers
        for done in (rows, stacks, label_sets):
            drain(done, self._breathe)
        return made


class _Names:
    """A pattern that is asked about each name once."""

    def __init__(self, pattern: Pattern, breathe: Callable[[], None]) -> None:
        self._pattern = pattern
        self._breathe = breathe
        self._known: dict[str, bool] = {}

    def __call__(self, name: str) -> bool:
        known = self._known.get(name)
        if known is None:
            self._breathe()
            known = self._known[name] = self._pattern.found_in(clean(name))
        return known

    def of(self, table: Columns, python: _Python) -> set[int]:
        """The frames of a table whose function, file or mapping matches."""
        found = {
            at
            for at, frame in enumerate(table.frames)
            if self(frame.function) or self(frame.file)
        }
        return found | python.places if self(python.mapping) else found


def _pseudo(labels: Labels, keys: list[str]) -> list[Frame]:
    """A frame for each key, the last key innermost; nameless without the label."""
    return [
        Frame(key, ",".join(v for k, v in labels if k == key), 0, 0)
        for key in reversed(keys)
    ]
