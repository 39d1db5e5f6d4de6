"""What a closed sampling window holds: plain data, no references into the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stroboscope._core.flat import FlatStacks

#: (file, qualified name, first line, line), and of a native one its address
Frame = tuple[str, str, int, int] | tuple[str, str, int, int, int]
#: (index into stacks, cell serial or 0, samples, nanoseconds)
Row = tuple[int, int, int, int]


class Moment(NamedTuple):
    """One sample: when (CLOCK_MONOTONIC), on which thread of the system, its stack.

    `serial` is the cell's, or 0; it stands for `weight` periods. `copy` is the number of
    its C stack, where one was taken, or 0.
    """

    time_ns: int
    serial: int
    stack: int
    tid: int
    weight: int
    copy: int = 0


#: Stands in a stack where its root-most frames were cut off.
TRUNCATED = -1


@dataclass(frozen=True, slots=True)
class Capture:
    """Counted stacks of one window.

    `stacks` hold indices into `frames`, leaf first, `TRUNCATED` for a cut. `chains` maps
    a cell's serial to its label overlays, root first; a serial without an entry has
    no known label. `notes` say what a reader must know to trust the numbers.
    """

    start_ns: int
    duration_ns: int
    period_ns: int
    frames: list[Frame]
    stacks: list[tuple[int, ...]] | FlatStacks
    rows: list[Row]
    chains: dict[int, tuple[object, ...]]
    notes: list[str]
    #: Its samples by time, where they were asked for, and periods beyond their limit.
    moments: Sequence[Moment] = ()
    late: int = 0
    #: C stacks that nobody took before the end; see `_core/src/copies.h`.
    copies: bytes = b""
