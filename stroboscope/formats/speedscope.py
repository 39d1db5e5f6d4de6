"""speedscope's own file format: one flame graph per value of a profile.

Weights are never negative: where values were subtracted, what shrank is a profile of
its own. Source: speedscope 1.25, file-format-schema.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

from stroboscope.formats.profile import Columns, Profile, columns

_SCHEMA = "https://www.speedscope.app/file-format-schema.json"
_UNITS = frozenset({"nanoseconds", "microseconds", "milliseconds", "seconds", "bytes"})
BYTES_CAP = 32 << 20


def _no_breath() -> None:
    pass


def write(
    profile: Profile,
    name: str,
    index: int = -1,
    breathe: Callable[[], None] = _no_breath,
) -> str:
    """The file; `index` is the value it opens with.

    A profile that would take it beyond `BYTES_CAP` ends there with one sample for the
    rest, `[truncated]`.
    """
    table = columns(profile.samples, len(profile.sample_types), breathe)
    functions: dict[tuple[str, str, int], int] = {}
    places = [
        functions.setdefault((f.function, f.file, f.start_line), len(functions))
        for f in table.frames
    ]
    rest = functions.setdefault(("[truncated]", "", 0), len(functions))
    stacks = _Stacks(table, places, rest, breathe)
    shown = []
    for at, value in enumerate(profile.sample_types):
        unit = value.unit if value.unit in _UNITS else "none"
        shown.append(stacks.profile(value.type, unit, at, 1))
        if min(table.values[at], default=0) < 0:
            shown.append(
                stacks.profile(f"{value.type}, less than before", unit, at, -1)
            )
    active = index % len(profile.sample_types)
    before = sum(min(column, default=0) < 0 for column in table.values[:active])
    head = {
        "$schema": _SCHEMA,
        "exporter": "stroboscope",
        "name": name,
        "activeProfileIndex": active + before,
    }
    return _joined(head, _frames(functions, breathe), shown)


def _frames(
    functions: Iterable[tuple[str, str, int]], breathe: Callable[[], None]
) -> str:
    out = []
    for function, file, line in functions:
        frame: dict[str, str | int] = {"name": function or "<unknown>"}
        if file:
            frame["file"] = file
        if line:
            frame["line"] = line
        out.append(json.dumps(frame))
        breathe()
    return ",".join(out)


def _joined(head: Mapping[str, object], frames: str, profiles: list[str]) -> str:
    shared = f'"shared":{{"frames":[{frames}]}},"profiles":[{",".join(profiles)}]'
    return f"{json.dumps(head)[:-1]},{shared}}}\n"


class _Stacks:
    """Writes one value after the other; never all at once, for that holds the GIL."""

    def __init__(
        self, table: Columns, places: list[int], rest: int, breathe: Callable[[], None]
    ) -> None:
        self._table = table
        self._places = places
        self._rest = rest
        self._breathe = breathe

    def profile(self, name: str, unit: str, index: int, sign: int) -> str:
        """The samples of one value that have this sign."""
        sums: dict[int, int] = {}
        table = self._table
        for stack, value in zip(table.stack_of, table.values[index], strict=True):
            sums[stack] = sums.get(stack, 0) + value
            self._breathe()
        samples, weights = [], []
        size = rest = 0
        for stack, value in sums.items():
            self._breathe()
            if value * sign <= 0:
                continue
            if size > BYTES_CAP:
                rest += value * sign
                continue
            shown = [self._places[at] for at in reversed(table.stacks[stack])]
            samples.append(str(shown))
            size += len(samples[-1])
            weights.append(value * sign)
        if rest:
            samples.append(f"[{self._rest}]")
            weights.append(rest)
        head = {
            "type": "sampled",
            "name": name,
            "unit": unit,
            "startValue": 0,
            "endValue": sum(weights),
        }
        lists = f'"samples":[{",".join(samples)}],"weights":{_numbers(weights)}'
        return f"{json.dumps(head)[:-1]},{lists}}}"


def _numbers(values: list[int]) -> str:
    return f"[{','.join(map(str, values))}]"
