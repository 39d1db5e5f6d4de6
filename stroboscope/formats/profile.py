"""A profile as plain data, between what collects it and what encodes it."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, overload

from stroboscope._core.flat import FlatStacks
from stroboscope.errors import ProfileError

Labels = tuple[tuple[str, str], ...]


def _no_breath() -> None:
    pass


def drain(large: dict[Any, Any] | list[Any], breathe: Callable[[], None]) -> None:
    """Empty it one by one: freeing so much at once holds the GIL."""
    take = large.popitem if isinstance(large, dict) else large.pop
    while large:
        take()
        breathe()


class Frame(NamedTuple):
    """A place in the source; `start_line` is its function's first line.

    One of native code has its library as `file`, no lines, and the `address` of its
    function, which is in one of the profile's mappings.
    """

    file: str
    function: str
    start_line: int
    line: int
    address: int = 0


class Mapping(NamedTuple):
    """A library with native frames: whose addresses are from `start` to `limit`.

    `offset` is where its code is in the file; `build_id` in hexadecimal digits.
    """

    path: str
    build_id: str
    start: int
    limit: int
    offset: int


class ValueType(NamedTuple):
    """What a value counts, in pprof's words: `cpu` in `nanoseconds`."""

    type: str
    unit: str


class Sample(NamedTuple):
    """A stack, leaf first, its values in the order of `sample_types`, its labels."""

    stack: tuple[Frame, ...]
    values: tuple[int, ...]
    labels: Labels = ()


class Columns(Sequence[Sample]):
    """Samples as columns of numbers, no two of the same stack and labels.

    Tens of thousands of them are nothing for the garbage collector to visit: a `Sample`
    exists only while somebody looks at it. `stacks` hold indices into `frames`, leaf
    first. Sample i has stack `stack_of[i]`, labels `labels_of[i]` and, of each sample
    type, the value `values[type][i]`.
    """

    def __init__(
        self,
        frames: list[Frame],
        stacks: list[tuple[int, ...]] | FlatStacks,
        label_sets: list[Labels],
        width: int,
    ) -> None:
        self.frames = frames
        self.stacks = stacks
        self.label_sets = label_sets
        self.stack_of = array("I")
        self.labels_of = array("I")
        self.values = tuple(array("q") for _ in range(width))

    def add(self, stack: int, labels: int, values: Iterable[int]) -> None:
        """Append a sample. Raises: ProfileError for a wrong number of values."""
        self.stack_of.append(stack)
        self.labels_of.append(labels)
        try:
            for column, value in zip(self.values, values, strict=True):
                column.append(value)
        except (ValueError, OverflowError) as error:
            raise ProfileError(f"sample {len(self)}: {error}") from None

    def put(
        self, rows: dict[int, int], stack: int, labels: int, values: Sequence[int]
    ) -> None:
        """Add values to the sample of a stack and labels, or append it.

        `rows` is the caller's, empty at first: where each sample stands.
        """
        key = stack << 32 | labels  # a number, so that the collector has less to visit
        at = rows.get(key)
        if at is None:
            rows[key] = len(self)
            self.add(stack, labels, values)
            return
        try:
            for column, value in zip(self.values, values, strict=True):
                column[at] += value
        except (ValueError, OverflowError) as error:
            raise ProfileError(f"sample {at}: {error}") from None

    def release(self, breathe: Callable[[], None]) -> None:
        """Free what it holds bit by bit; nobody may use it any more."""
        self.stack_of, self.labels_of = array("I"), array("I")
        if isinstance(self.stacks, FlatStacks):
            self.stacks.clear()
        else:
            drain(self.stacks, breathe)
        for large in (self.label_sets, self.frames):
            drain(large, breathe)

    def __eq__(self, other: object) -> bool:
        """Whether it is a sequence of equal samples."""
        return isinstance(other, Sequence) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]  # samples may be added

    def __len__(self) -> int:
        return len(self.stack_of)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> list[Sample]: ...
    def __getitem__(self, at: int | slice) -> Sample | list[Sample]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        frames = tuple(self.frames[i] for i in self.stacks[self.stack_of[at]])
        values = tuple(column[at] for column in self.values)
        return Sample(frames, values, self.label_sets[self.labels_of[at]])


@dataclass(frozen=True, slots=True)
class Profile:
    """Samples with what is needed to read them. Times are nanoseconds since 1970."""

    sample_types: tuple[ValueType, ...]
    samples: Sequence[Sample]
    period_type: ValueType
    period: int
    time_ns: int = 0
    duration_ns: int = 0
    comments: tuple[str, ...] = ()
    default_sample_type: str = ""
    mapping: str = "python"
    mappings: tuple[Mapping, ...] = ()

    def total(self, index: int = -1) -> int:
        """Sum of one value over all samples."""
        return sum(sample.values[index] for sample in self.samples)

    def native_mapping_of(self, frame: Frame) -> int | None:
        """Which of `mappings` a native frame is in; None for one that is in `mapping`."""
        if frame.address:
            for at, one in enumerate(self.mappings):
                if one.path == frame.file and one.start <= frame.address < one.limit:
                    return at
        return None


def aggregate(
    samples: Iterable[Sample], breathe: Callable[[], None] = _no_breath
) -> list[Sample]:
    """Add up samples of the same stack and labels; order of first sight."""
    sums: dict[tuple[tuple[Frame, ...], Labels], list[int]] = {}
    for stack, values, labels in samples:
        found = sums.get((stack, labels))
        if found is None:
            sums[stack, labels] = list(values)
        else:
            for at, value in enumerate(values):
                found[at] += value
        breathe()
    return [Sample(k[0], tuple(v), k[1]) for k, v in sums.items()]


def columns(
    samples: Sequence[Sample], width: int, breathe: Callable[[], None] = _no_breath
) -> Columns:
    """Samples as columns; those of the same stack and labels add up.

    Raises: ProfileError for a sample that has not `width` values.
    """
    if isinstance(samples, Columns):
        return samples
    return _added([(samples, 1)], width, breathe)


def _added(
    parts: Iterable[tuple[Sequence[Sample], int]],
    width: int,
    breathe: Callable[[], None],
) -> Columns:
    """The sum of sequences of samples, each times a number."""
    frames: dict[Frame, int] = {}
    stacks: dict[tuple[int, ...], int] = {}
    label_sets: dict[Labels, int] = {}
    rows: dict[int, int] = {}
    made = Columns([], [], [], width)
    for samples, times in parts:
        for stack, values, labels in samples:
            places = tuple(frames.setdefault(frame, len(frames)) for frame in stack)
            made.put(
                rows,
                stacks.setdefault(places, len(stacks)),
                label_sets.setdefault(labels, len(label_sets)),
                [times * value for value in values],
            )
            breathe()
    made.frames += frames
    made.stacks.extend(stacks)
    made.label_sets += label_sets
    drain(rows, breathe)
    return made


def merge(profiles: list[Profile], breathe: Callable[[], None] = _no_breath) -> Profile:
    """One profile of all: same stacks and labels add up.

    `breathe` is called for every sample, as in `pprof.encode`.
    Raises: ProfileError for none, or for profiles that count different things.
    """
    if not profiles:
        raise ProfileError("nothing to merge")
    first = profiles[0]
    types = first.sample_types
    if any(p.sample_types != types for p in profiles):
        raise ProfileError("profiles of different sample types cannot be merged")
    return replace(
        first,
        samples=_added([(p.samples, 1) for p in profiles], len(types), breathe),
        time_ns=min(p.time_ns for p in profiles),
        duration_ns=max(p.duration_ns for p in profiles),
        comments=tuple(dict.fromkeys(c for p in profiles for c in p.comments)),
        mappings=_united(profiles),
    )


def _united(profiles: Iterable[Profile]) -> tuple[Mapping, ...]:
    return tuple(sorted({one for profile in profiles for one in profile.mappings}))


def subtract(
    profile: Profile, base: Profile, breathe: Callable[[], None] = _no_breath
) -> Profile:
    """What changed since `base`; samples that did not change are dropped.

    Raises: ProfileError when the two count different things.
    """
    types = profile.sample_types
    if base.sample_types != types:
        raise ProfileError("profiles of different sample types cannot be subtracted")
    both = _added([(profile.samples, 1), (base.samples, -1)], len(types), breathe)
    changed = Columns(both.frames, both.stacks, both.label_sets, len(types))
    for at, stack in enumerate(both.stack_of):
        values = [column[at] for column in both.values]
        if any(values):
            changed.add(stack, both.labels_of[at], values)
        breathe()
    return replace(
        profile,
        samples=changed,
        time_ns=min(profile.time_ns, base.time_ns),
        duration_ns=max(profile.duration_ns, base.duration_ns),
        mappings=_united([profile, base]),
    )
