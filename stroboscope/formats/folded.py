"""Folded stacks: a line per stack, outermost frame first, as flame graph tools read.

Source: github.com/brendangregg/FlameGraph, stackcollapse.
"""

from __future__ import annotations

from collections.abc import Callable

from stroboscope.formats.profile import Frame, Profile, columns

BYTES_CAP = 32 << 20
_CLEAN = str.maketrans(";\n\r", ":  ")


def _no_breath() -> None:
    pass


def named(frame: Frame) -> str:
    """A frame in one word of ours: its function and where that is."""
    return f"{frame.function} ({frame.file})" if frame.file else frame.function


def write(
    profile: Profile, index: int = -1, breathe: Callable[[], None] = _no_breath
) -> str:
    """One value of a profile; stacks of all label sets add up, zeros are left out.

    Beyond `BYTES_CAP` the rest is one line, `[truncated]`.
    """
    table = columns(profile.samples, len(profile.sample_types), breathe)
    names = [named(frame).translate(_CLEAN) for frame in table.frames]
    sums: dict[str, int] = {}
    size = rest = 0
    stacks: dict[int, str] = {}
    for stack, value in zip(table.stack_of, table.values[index], strict=True):
        breathe()
        line = stacks.get(stack)
        if line is None:
            line = ";".join(names[place] for place in reversed(table.stacks[stack]))
            size += len(line)
            if size > BYTES_CAP:
                rest += value
                continue
            stacks[stack] = line
        sums[line] = sums.get(line, 0) + value
    if rest:
        sums["[truncated]"] = rest
    return "".join(f"{line} {value}\n" for line, value in sums.items() if value)
