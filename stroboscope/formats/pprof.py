"""Write pprof: gzip of one `perftools.profiles.Profile`.

Source: google/pprof proto/profile.proto, and what the validators of pprof, Parca,
Pyroscope and Alloy demand: ids sequential from 1, one mapping that says it has names,
location addresses that are the same in every profile of the same place. Native frames
are in mappings of their own, from 2.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from stroboscope._core.flat import FlatStacks
from stroboscope.formats._wire import block, number, packed
from stroboscope.formats.profile import (
    Columns,
    Frame,
    Labels,
    Mapping,
    Profile,
    columns,
    drain,
)

# Field numbers of profile.proto.
SAMPLE_TYPE, SAMPLE, MAPPING, LOCATION, FUNCTION, STRINGS = 1, 2, 3, 4, 5, 6
TIME_NANOS, DURATION_NANOS, PERIOD_TYPE, PERIOD = 9, 10, 11, 12
COMMENT, DEFAULT_SAMPLE_TYPE = 13, 14
SAMPLE_LOCATIONS, SAMPLE_VALUES, SAMPLE_LABEL = 1, 2, 3
LABEL_KEY, LABEL_STR = 1, 2
MAPPING_ID, MAPPING_START, MAPPING_LIMIT, MAPPING_OFFSET = 1, 2, 3, 4
MAPPING_FILE, MAPPING_BUILD_ID = 5, 6
MAPPING_HAS = (7, 8, 9)  # functions, filenames, line numbers
LOCATION_ID, LOCATION_MAPPING, LOCATION_ADDRESS, LOCATION_LINE = 1, 2, 3, 4
LINE_FUNCTION, LINE_LINE = 1, 2
FUNCTION_ID, FUNCTION_NAME, FUNCTION_FILE = 1, 2, 4
FUNCTION_START = 5

STRING_CAP = 1024
#: Pyroscope's limit on samples of one profile.
SAMPLES_CAP = 16_000
_CHUNK = 1 << 14


def _no_breath() -> None:
    pass


def encode(profile: Profile, breathe: Callable[[], None] = _no_breath) -> bytes:
    """The bytes of a profile.

    `breathe` is called for every sample, place and block, for a caller who shares the
    GIL with an application. Samples of the same stack and labels add up.
    Raises: ProfileError for a sample with the wrong number of values, or one too large.
    """
    writer = _Writer(profile, breathe)
    parts = writer.parts()
    writer.release()
    squeeze = zlib.compressobj(6, zlib.DEFLATED, 31)  # 31: one gzip member
    out = []
    for part in parts:
        for at in range(0, len(part), _CHUNK):
            out.append(squeeze.compress(part[at : at + _CHUNK]))
            breathe()
    out.append(squeeze.flush())
    return b"".join(out)


def prune(
    profile: Profile, cap: int = SAMPLES_CAP, breathe: Callable[[], None] = _no_breath
) -> Profile:
    """The heaviest samples; the rest is one `[truncated]` sample: totals stay true."""
    if len(profile.samples) <= cap:
        return profile
    width = len(profile.sample_types)
    table = columns(profile.samples, width, breathe)
    least, of_least = _least_kept(table.values[-1], cap - 1, breathe)
    kept = Columns(
        [*table.frames, Frame("", "[truncated]", 0, 0)],
        FlatStacks(),
        [*table.label_sets, ()],
        width,
    )
    numbers: dict[int, int] = {}  # of the stacks that are kept
    sums = [0] * width
    for at, weight in enumerate(table.values[-1]):
        values = [column[at] for column in table.values]
        of_least -= abs(weight) == least
        if abs(weight) > least or (abs(weight) == least and of_least >= 0):
            stack = table.stack_of[at]
            number = numbers.setdefault(stack, len(numbers))
            if number == len(kept.stacks):
                kept.stacks.append(table.stacks[stack])
            kept.add(number, table.labels_of[at], values)
        else:
            sums = [total + value for total, value in zip(sums, values, strict=True)]
        breathe()
    kept.stacks.append((len(table.frames),))
    kept.add(len(numbers), len(table.label_sets), sums)
    drain(numbers, breathe)
    note = (
        f"{len(table) - cap + 1} of {len(table)} samples are summed up in [truncated]"
    )
    return replace(profile, samples=kept, comments=(*profile.comments, note))


def _least_kept(
    weights: Iterable[int], room: int, breathe: Callable[[], None]
) -> tuple[int, int]:
    """The least magnitude among the `room` largest, and how many of it there is room for."""
    counts: Counter[int] = Counter()
    for weight in weights:
        counts[abs(weight)] += 1
        breathe()
    found = _nth(counts, room, breathe)
    drain(counts, breathe)
    return found


def _nth(
    counts: Counter[int], room: int, breathe: Callable[[], None]
) -> tuple[int, int]:
    """The same of numbers that are counted.

    Not a sort: sorting so many would hold the GIL for ten milliseconds.
    Source: Hoare, "Algorithm 65: find", CACM 4(7), 1961.
    """
    left = [*counts]
    while True:
        pivot = left[len(left) // 2]
        above: list[int] = []
        below: list[int] = []
        over = 0
        for weight in left:
            if weight > pivot:
                above.append(weight)
                over += counts[weight]
            elif weight < pivot:
                below.append(weight)
            breathe()
        if room <= over and above:
            left = above
        elif room <= over + counts[pivot] or not below:
            return pivot, room - over
        else:
            room -= over + counts[pivot]
            left = below


def clean(text: str) -> str:
    """A string as it is written: one bad one makes Pyroscope refuse the profile."""
    return text.encode("utf-8", "replace")[:STRING_CAP].decode("utf-8", "ignore")


class _Writer:
    def __init__(self, profile: Profile, breathe: Callable[[], None]) -> None:
        self._profile = profile
        self._breathe = breathe
        self._strings: dict[str, int] = {"": 0}
        self._functions: dict[tuple[str, str, int], int] = {}
        self._locations: dict[Frame, int] = {}
        self._addresses: set[int] = set()
        self._table = columns(profile.samples, len(profile.sample_types), breathe)
        self._stacks: dict[int, bytes] = {}
        self._label_sets: dict[Labels, bytes] = {}
        self._function_parts = bytearray()
        self._location_parts = bytearray()

    def parts(self) -> list[bytes | bytearray]:
        p = self._profile
        types = [
            block(SAMPLE_TYPE, self._value_type(t.type, t.unit)) for t in p.sample_types
        ]
        samples = self._samples()
        tail: list[bytes | bytearray] = [
            self._mapping(1, Mapping(p.mapping, "", 0, 0, 0)),
            *(self._mapping(at, one) for at, one in enumerate(p.mappings, 2)),
            self._location_parts,
            self._function_parts,
            number(TIME_NANOS, p.time_ns),
            number(DURATION_NANOS, p.duration_ns),
            block(
                PERIOD_TYPE, self._value_type(p.period_type.type, p.period_type.unit)
            ),
            number(PERIOD, p.period),
            packed(COMMENT, [self._string(text) for text in p.comments]),
            number(DEFAULT_SAMPLE_TYPE, self._string(p.default_sample_type)),
        ]
        strings = bytearray()
        for text in self._strings:
            strings += block(STRINGS, text.encode())
            self._breathe()
        return [b"".join(types), samples, *tail, strings]

    def release(self) -> None:
        """Free what was remembered, bit by bit."""
        for large in (self._stacks, self._locations, self._strings, self._functions):
            drain(large, self._breathe)

    def _string(self, text: str) -> int:
        return self._strings.setdefault(clean(text), len(self._strings))

    def _value_type(self, kind: str, unit: str) -> bytes:
        return number(1, self._string(kind)) + number(2, self._string(unit))

    def _mapping(self, number_: int, of: Mapping) -> bytes:
        return block(
            MAPPING,
            number(MAPPING_ID, number_)
            + number(MAPPING_START, of.start)
            + number(MAPPING_LIMIT, of.limit)
            + number(MAPPING_OFFSET, of.offset)
            + number(MAPPING_FILE, self._string(of.path))
            + number(MAPPING_BUILD_ID, self._string(of.build_id))
            + b"".join(number(field, 1) for field in MAPPING_HAS),
        )

    def _mapping_of(self, frame: Frame) -> int:
        """Its number; the first where the profile has none for a native frame."""
        native = self._profile.native_mapping_of(frame)
        return 1 if native is None else native + 2

    def _samples(self) -> bytearray:
        table = self._table
        out = bytearray()
        for at, stack in enumerate(table.stack_of):
            body = self._stack(stack)
            body += packed(SAMPLE_VALUES, [column[at] for column in table.values])
            body += self._labels(table.label_sets[table.labels_of[at]])
            out += block(SAMPLE, body)
            self._breathe()
        return out

    def _stack(self, at: int) -> bytes:
        known = self._stacks.get(at)
        if known is None:
            frames = (self._table.frames[i] for i in self._table.stacks[at])
            known = packed(SAMPLE_LOCATIONS, map(self._location, frames))
            self._stacks[at] = known
        return known

    def _labels(self, labels: Labels) -> bytes:
        known = self._label_sets.get(labels)
        if known is None:
            known = b"".join(
                block(
                    SAMPLE_LABEL,
                    number(LABEL_KEY, self._string(key))
                    + number(LABEL_STR, self._string(value)),
                )
                for key, value in dict(labels).items()
                if key and not key.startswith("pprof::")
            )
            self._label_sets[labels] = known
        return known

    def _location(self, frame: Frame) -> int:
        known = self._locations.get(frame)
        if known is not None:
            return known
        self._breathe()
        number_ = self._locations[frame] = len(self._locations) + 1
        function = self._function(frame)
        line = number(LINE_FUNCTION, function) + number(LINE_LINE, frame.line)
        self._location_parts += block(
            LOCATION,
            number(LOCATION_ID, number_)
            + number(LOCATION_MAPPING, self._mapping_of(frame))
            + number(LOCATION_ADDRESS, self._address(frame))
            + block(LOCATION_LINE, line),
        )
        return number_

    def _function(self, frame: Frame) -> int:
        key = (frame.file, frame.function, frame.start_line)
        known = self._functions.get(key)
        if known is not None:
            return known
        number_ = self._functions[key] = len(self._functions) + 1
        # No system name: pprof would take ours for one of C++ and cut `<module>` out.
        self._function_parts += block(
            FUNCTION,
            number(FUNCTION_ID, number_)
            + number(FUNCTION_NAME, self._string(frame.function))
            + number(FUNCTION_FILE, self._string(frame.file))
            + number(FUNCTION_START, frame.start_line),
        )
        return number_

    def _address(self, frame: Frame) -> int:
        address = stable_address(frame)
        while address in self._addresses:  # as good as never; addresses are unique
            address = address % (1 << 62) + 1
        self._addresses.add(address)
        return address


def stable_address(frame: Frame) -> int:
    """A non-zero 62-bit number, the same for a place in every process.

    Alloy computes deltas by address, so it must not depend on the order of frames. A
    native frame has one.
    """
    if frame.address:
        return frame.address
    text = f"{frame.file}\0{frame.function}\0{frame.line}"
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 2 or 1


__all__ = ["clean", "encode", "prune", "stable_address"]
