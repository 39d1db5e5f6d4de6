"""The wall profile: where time went, on the CPU and off it.

On the CPU from a window of the shared sampler; threads that wait, and suspended tasks,
from a ticker (`_core/src/wall.h`). Label `state`: running, waiting, suspended. The
first two of a thread add up to the time that passed; a task runs under its thread, and
is here while it is suspended. Blocks for as long as it collects.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

from stroboscope._core import Window, engine
from stroboscope.formats.profile import (
    Columns,
    Frame,
    Labels,
    Profile,
    ValueType,
    columns,
)
from stroboscope.labels import TABLE
from stroboscope.profiles import cpu, portable_wall
from stroboscope.profiles.breath import Breath
from stroboscope.profiles.ledgers import keep_labels, to_columns

WALL = ValueType("wall", "nanoseconds")
#: Columns of the ledger. Source: wall.c.
_WAITING, _SUSPENDED, _WIDTH = 0, 1, 3
#: At most so many tasks are looked at in one tick. Source: SB_WALL_TASKS.
TASKS_PER_TICK = 8

_ticker: Any
try:
    from stroboscope._core.wall import Ticker

    _ticker = Ticker(engine)
except ImportError:
    _ticker = portable_wall.Ticker(engine, TASKS_PER_TICK)


def collect_wall(
    seconds: float,
    on_window: Callable[[Window], object],
    *,
    hz: int = 100,
    windows: int = 4,
    each: Callable[[], object] = lambda: None,
    loops: Callable[[], Iterable[asyncio.AbstractEventLoop]] = tuple,
    start_ns: int = 0,
) -> Profile:
    """Time of every thread and suspended task over `seconds` from now, labelled.

    `on_window`, `each` and `start_ns` as in `collect_cpu`, with which windows are shared.
    Raises: WindowsExhausted, EngineUnavailable.
    """
    window = engine.open_window(hz, seconds=seconds, limit=windows, start_ns=start_ns)
    try:
        on_window(window)
        is_portable = isinstance(_ticker, portable_wall.Ticker)
        if not is_portable:
            keep_labels(TABLE.cap)
        window.wait(0.0)
        handle = _ticker.open(loops)
        try:
            complete = window.wait(seconds, each)
            copy = _ticker.end(handle)
            capture = window.close()
            off = copy if is_portable else to_columns(copy, _WIDTH, ())
        finally:
            _ticker.close(handle)
    finally:
        window.close()
    on = cpu.to_profile(capture, () if complete else ("ended early",))
    parts = (
        (columns(on.samples, 2), 1, "running"),
        (off, _WAITING, "waiting"),
        (off, _SUSPENDED, "suspended"),
    )
    return Profile(
        sample_types=(WALL,),
        samples=_joined(parts),
        period_type=WALL,
        period=on.period,
        time_ns=on.time_ns,
        duration_ns=on.duration_ns,
        comments=(
            *on.comments,
            f"tasks: {TASKS_PER_TICK} are looked at in a tick, each for all it stands for",
        ),
        mapping=f"python{sys.version_info.major}.{sys.version_info.minor}",
    )


def _joined(parts: tuple[tuple[Columns, int, str], ...]) -> Columns:
    """One value of each of these as rows of one table, labelled with their state."""
    breathe = Breath()
    frames: dict[Frame, int] = {}
    stacks: dict[tuple[int, ...], int] = {}
    sets: dict[Labels, int] = {}
    made = Columns([], [], [], 1)
    for part, value, state in parts:
        places = [frames.setdefault(frame, len(frames)) for frame in part.frames]
        numbers = []
        for of_part in part.stacks:
            key = tuple(places[at] for at in of_part)
            numbers.append(stacks.setdefault(key, len(stacks)))
            breathe()
        labels = [
            sets.setdefault(_with_state(one, state), len(sets))
            for one in part.label_sets
        ]
        for stack, owner, ns in zip(
            part.stack_of, part.labels_of, part.values[value], strict=True
        ):
            if ns:
                made.add(numbers[stack], labels[owner], (ns,))
            breathe()
    made.frames += frames
    made.stacks.extend(stacks)
    made.label_sets += sets
    return made


def _with_state(labels: Labels, state: str) -> Labels:
    kept = (pair for pair in labels if pair[0] != "state")
    return tuple(chain(kept, (("state", state),)))
