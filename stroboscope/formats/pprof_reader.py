"""Read pprof, from anybody: for the CLI and for merging.

Never raises anything but ProfileFormatError, never inflates beyond a cap.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from stroboscope.errors import ProfileFormatError
from stroboscope.formats import pprof as f
from stroboscope.formats._wire import fields, numbers, signed
from stroboscope.formats.profile import (
    Columns,
    Frame,
    Labels,
    Mapping,
    Profile,
    ValueType,
    drain,
)

INFLATED_CAP = 256 << 20
_CHUNK = 1 << 18


def _no_breath() -> None:
    pass


def decode(data: bytes, breathe: Callable[[], None] = _no_breath) -> Profile:
    """The profile in gzipped or plain bytes.

    `breathe` is called for every sample and place, as in `pprof.encode`.
    Raises: ProfileFormatError for anything else.
    """
    try:
        return _Reader(_inflate(data, breathe), breathe).profile()
    except (IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ProfileFormatError):
            raise
        raise ProfileFormatError(f"not a pprof profile: {error}") from error


def _inflate(data: bytes, breathe: Callable[[], None]) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data
    expand = zlib.decompressobj(31)
    parts = []
    size = 0
    try:
        while data and size < INFLATED_CAP and not expand.eof:
            parts.append(expand.decompress(data, _CHUNK))
            size += len(parts[-1])
            data = expand.unconsumed_tail
            breathe()
    except zlib.error as error:
        raise ProfileFormatError(f"bad gzip: {error}") from error
    if not expand.eof:
        raise ProfileFormatError("gzip data is cut off or too large")
    return b"".join(parts)


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ProfileFormatError("a number was expected")
    return value


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ProfileFormatError("a message was expected")
    return value


class _Reader:
    def __init__(self, data: bytes, breathe: Callable[[], None]) -> None:
        self._breathe = breathe
        self._all: dict[int, list[int | bytes]] = {}
        for field, value in fields(data):
            self._all.setdefault(field, []).append(value)
            breathe()
        self._strings: list[str] = []
        for text in self._get(f.STRINGS):
            self._strings.append(_bytes(text).decode("utf-8", "replace"))
            breathe()
        if not self._strings or self._strings[0] != "":
            raise ProfileFormatError("not a pprof profile: no string table")
        self._functions = dict(map(self._function, self._get(f.FUNCTION)))
        found = map(self._read_mapping, self._get(f.MAPPING))
        _, self._mapping = next(found, (0, Mapping("", "", 0, 0, 0)))
        # Of those after the first, as we write them: libraries that have addresses.
        self._mappings = {at: one for at, one in found if one.start < one.limit}
        self._frames: dict[Frame, int] = {}
        self._locations = dict(map(self._location, self._get(f.LOCATION)))

    def _get(self, field: int) -> list[int | bytes]:
        return self._all.get(field, [])

    def _last(self, field: int) -> int:
        values = self._get(field)
        return _number(values[-1]) if values else 0

    def profile(self) -> Profile:
        types = tuple(self._value_type(_bytes(v)) for v in self._get(f.SAMPLE_TYPE))
        if not types:
            raise ProfileFormatError("not a pprof profile: no sample types")
        period = self._get(f.PERIOD_TYPE)
        comments = [n for value in self._get(f.COMMENT) for n in numbers(value)]
        return Profile(
            sample_types=types,
            samples=self._samples(len(types)),
            period_type=self._value_type(_bytes(period[-1]) if period else b""),
            period=signed(self._last(f.PERIOD)),
            time_ns=signed(self._last(f.TIME_NANOS)),
            duration_ns=signed(self._last(f.DURATION_NANOS)),
            comments=tuple(self._strings[at] for at in comments),
            default_sample_type=self._strings[self._last(f.DEFAULT_SAMPLE_TYPE)],
            mapping=self._mapping.path,
            mappings=tuple(self._mappings.values()),
        )

    def _value_type(self, data: bytes) -> ValueType:
        parts = dict(fields(data))
        return ValueType(
            self._strings[_number(parts.get(1, 0))],
            self._strings[_number(parts.get(2, 0))],
        )

    def _read_mapping(self, value: int | bytes) -> tuple[int, Mapping]:
        parts = {key: _number(v) for key, v in fields(_bytes(value))}
        return parts.get(f.MAPPING_ID, 0), Mapping(
            self._strings[parts.get(f.MAPPING_FILE, 0)],
            self._strings[parts.get(f.MAPPING_BUILD_ID, 0)],
            parts.get(f.MAPPING_START, 0),
            parts.get(f.MAPPING_LIMIT, 0),
            parts.get(f.MAPPING_OFFSET, 0),
        )

    def _function(self, value: int | bytes) -> tuple[int, tuple[str, str, int]]:
        self._breathe()
        parts = {key: _number(v) for key, v in fields(_bytes(value))}
        return parts[f.FUNCTION_ID], (
            self._strings[parts.get(f.FUNCTION_FILE, 0)],
            self._strings[parts.get(f.FUNCTION_NAME, 0)],
            signed(parts.get(f.FUNCTION_START, 0)),
        )

    def _location(self, value: int | bytes) -> tuple[int, tuple[int, ...]]:
        """Its id, and the numbers of its frames, innermost first."""
        self._breathe()
        found: list[int] = []
        number = address = 0
        mapping: Mapping | None = None
        for field, part in fields(_bytes(value)):
            if field == f.LOCATION_ID:
                number = _number(part)
            elif field == f.LOCATION_MAPPING:
                mapping = self._mappings.get(_number(part))
            elif field == f.LOCATION_ADDRESS:
                address = _number(part)
            elif field == f.LOCATION_LINE:
                line = {key: _number(v) for key, v in fields(_bytes(part))}
                file, name, start = self._functions[line[f.LINE_FUNCTION]]
                at = address if mapping and file == mapping.path else 0
                frame = Frame(file, name, start, line.get(f.LINE_LINE, 0), at)
                found.append(self._frames.setdefault(frame, len(self._frames)))
        return number, tuple(found)

    def _samples(self, width: int) -> Columns:
        made = Columns([*self._frames], [], [], width)
        stacks: dict[tuple[int, ...], int] = {}
        label_sets: dict[Labels, int] = {}
        rows: dict[int, int] = {}
        for value in self._get(f.SAMPLE):
            self._breathe()
            stack, values, labels = self._sample(_bytes(value))
            if len(values) != width:
                raise ProfileFormatError(
                    f"a sample has {len(values)} of {width} values"
                )
            made.put(
                rows,
                stacks.setdefault(stack, len(stacks)),
                label_sets.setdefault(labels, len(label_sets)),
                values,
            )
        made.stacks.extend(stacks)
        made.label_sets += label_sets
        drain(rows, self._breathe)
        return made

    def _sample(self, data: bytes) -> tuple[tuple[int, ...], list[int], Labels]:
        stack: list[int] = []
        values: list[int] = []
        labels: list[tuple[str, str]] = []
        for field, value in fields(data):
            if field == f.SAMPLE_LOCATIONS:
                for at in numbers(value):
                    stack += self._locations[at]
            elif field == f.SAMPLE_VALUES:
                values += [signed(n) for n in numbers(value)]
            elif field == f.SAMPLE_LABEL:
                labels += self._label(_bytes(value))
        return tuple(stack), values, tuple(labels)

    def _label(self, data: bytes) -> Labels:
        parts = {key: _number(v) for key, v in fields(data)}
        text = parts.get(f.LABEL_STR, 0)
        if not text:
            return ()  # a numeric label, which we neither write nor show
        return ((self._strings[parts.get(f.LABEL_KEY, 0)], self._strings[text]),)
