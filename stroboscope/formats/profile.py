"""A profile as plain data, between what collects it and what encodes it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from stroboscope.errors import ProfileError

Labels = tuple[tuple[str, str], ...]


class Frame(NamedTuple):
    """A place in the source; `start_line` is its function's first line."""

    file: str
    function: str
    start_line: int
    line: int


class ValueType(NamedTuple):
    """What a value counts, in pprof's words: `cpu` in `nanoseconds`."""

    type: str
    unit: str


class Sample(NamedTuple):
    """A stack, leaf first, its values in the order of `sample_types`, its labels."""

    stack: tuple[Frame, ...]
    values: tuple[int, ...]
    labels: Labels = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """Samples with what is needed to read them. Times are nanoseconds since 1970."""

    sample_types: tuple[ValueType, ...]
    samples: list[Sample]
    period_type: ValueType
    period: int
    time_ns: int = 0
    duration_ns: int = 0
    comments: tuple[str, ...] = ()
    default_sample_type: str = ""
    mapping: str = "python"

    def total(self, index: int = -1) -> int:
        """Sum of one value over all samples."""
        return sum(sample.values[index] for sample in self.samples)


def aggregate(samples: Iterable[Sample]) -> list[Sample]:
    """Add up samples of the same stack and labels; order of first sight."""
    sums: dict[tuple[tuple[Frame, ...], Labels], list[int]] = {}
    for stack, values, labels in samples:
        found = sums.get((stack, labels))
        if found is None:
            sums[stack, labels] = list(values)
        else:
            for at, value in enumerate(values):
                found[at] += value
    return [Sample(k[0], tuple(v), k[1]) for k, v in sums.items()]


def merge(profiles: list[Profile]) -> Profile:
    """One profile of all: same stacks and labels add up.

    Raises: ProfileError for none, or for profiles that count different things.
    """
    if not profiles:
        raise ProfileError("nothing to merge")
    first = profiles[0]
    if any(p.sample_types != first.sample_types for p in profiles):
        raise ProfileError("profiles of different sample types cannot be merged")
    return replace(
        first,
        samples=aggregate(sample for p in profiles for sample in p.samples),
        time_ns=min(p.time_ns for p in profiles),
        duration_ns=max(p.duration_ns for p in profiles),
        comments=tuple(dict.fromkeys(c for p in profiles for c in p.comments)),
    )


def subtract(profile: Profile, base: Profile) -> Profile:
    """What changed since `base`; samples that did not change are dropped.

    Raises: ProfileError when the two count different things.
    """
    negative = [
        Sample(s.stack, tuple(-v for v in s.values), s.labels) for s in base.samples
    ]
    both = merge([profile, replace(base, samples=negative)])
    changed = [sample for sample in both.samples if any(sample.values)]
    return replace(both, samples=changed, comments=profile.comments)
