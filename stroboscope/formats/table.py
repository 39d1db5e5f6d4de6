"""Functions by what they cost: the table of `pprof -top`.

`flat` is what a function's own lines cost, `cum` what it and all it calls cost.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from stroboscope.formats.measures import measured, share
from stroboscope.formats.profile import Profile, ValueType, columns


class Row(NamedTuple):
    """A function, its own cost and that with all it calls."""

    function: str
    flat: int
    cum: int


@dataclass(frozen=True, slots=True)
class Table:
    """Rows in order; `total` is that of the whole profile, `shown` of this part."""

    value: ValueType
    rows: list[Row]
    shown: int
    total: int


def _no_breath() -> None:
    pass


def magnitude(profile: Profile, index: int) -> int:
    """Sum of one value over all samples; what shrank counts as what grew."""
    table = columns(profile.samples, len(profile.sample_types))
    return sum(map(abs, table.values[index]))


def functions(
    profile: Profile,
    index: int = -1,
    *,
    total: int | None = None,
    by_cumulative: bool = False,
    breathe: Callable[[], None] = _no_breath,
) -> Table:
    """The functions of a profile, dearest first.

    `total` is what shares are of: that of the profile before it was sliced.
    Source: order and names are those of pprof's granularity `functions`.
    """
    table = columns(profile.samples, len(profile.sample_types), breathe)
    names = [frame.function or "<unknown>" for frame in table.frames]
    flat: Counter[str] = Counter()
    cumulative: Counter[str] = Counter()
    for stack, value in zip(table.stack_of, table.values[index], strict=True):
        breathe()
        places = table.stacks[stack]
        if not value or not places:
            continue
        flat[names[places[0]]] += value
        for name in {names[place] for place in places}:
            cumulative[name] += value
    rows = [Row(name, flat[name], cum) for name, cum in cumulative.items()]
    if by_cumulative:
        rows.sort(key=lambda row: (-abs(row.cum), row.function))
    else:
        rows.sort(key=lambda row: (-abs(row.flat), row.function))
    shown = magnitude(profile, index)
    kind = profile.sample_types[index]
    return Table(kind, rows, shown, shown if total is None else total)


def text(table: Table, most: int) -> str:
    """The first rows as pprof prints them."""
    unit = table.value.unit
    rows = table.rows[:most]
    out = [
        f"Type: {table.value.type}",
        f"Showing {len(rows)} of {len(table.rows)} functions, "
        f"{measured(table.shown, unit)} ({share(table.shown, table.total)}) "
        f"of {measured(table.total, unit)} total",
        f"{'flat':>10} {'flat%':>7} {'sum%':>7} {'cum':>10} {'cum%':>7}  function",
    ]
    so_far = 0
    for row in rows:
        so_far += row.flat
        out.append(
            f"{measured(row.flat, unit):>10} {share(row.flat, table.total):>7} "
            f"{share(so_far, table.total):>7} {measured(row.cum, unit):>10} "
            f"{share(row.cum, table.total):>7}  {row.function}"
        )
    return "\n".join(out) + "\n"


def as_json(table: Table, most: int) -> str:
    """The same as JSON: exact values, in the profile's unit."""
    found = {
        "type": table.value.type,
        "unit": table.value.unit,
        "shown": table.shown,
        "total": table.total,
        "functions": [row._asdict() for row in table.rows[:most]],
    }
    return json.dumps(found, indent=1) + "\n"
