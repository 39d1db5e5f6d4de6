"""CPU samples in a trace: Perfetto's PerfSample, which its flame graph shows.

Source: protos/perfetto/trace of Perfetto v52: PerfSample, InternedData, Frame,
TracePacketDefaults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from stroboscope._core.capture import TRUNCATED, Frame, Moment
from stroboscope.formats._wire import block, number

#: A packet sequence of its own, beside that of the process: its names are others.
_SEQUENCE = 1 << 31
#: The number of its first track; see `_core/src/perfetto.h` for the others.
_TRACKS = 0x80000
_MONOTONIC = 3
_STATE_CLEARED, _NEEDS_STATE = 1, 2
_USER_MODE, _CPU_CLOCK = 2, 1


@dataclass(frozen=True, slots=True)
class Callstacks:
    """Samples, and what their stacks are: as in a window's `Capture`."""

    moments: Sequence[Moment]
    frames: Sequence[Frame]
    stacks: Sequence[tuple[int, ...]]
    hz: int
    #: Names of threads by the system's id, as far as they are known.
    threads: Mapping[int, str]


def packets(
    taken: Callstacks, pid: int, breathe: Callable[[], object]
) -> Iterator[bytes]:
    """Perfetto's packets of them; a sample that stands for n periods is there n times."""
    sequence = number(10, _SEQUENCE | pid)
    for at, (tid, name) in enumerate(taken.threads.items()):
        thread = number(1, pid) + number(2, tid) + block(5, name.encode())
        track = number(1, pid << 32 | _TRACKS + at) + block(4, thread)
        yield block(1, sequence + block(60, track))
    yield block(1, sequence + _interned(taken, breathe))
    for moment in taken.moments:
        sample = (
            number(2, pid)
            + number(3, moment.tid)
            + number(4, moment.stack + 1)
            + number(5, _USER_MODE)
        )
        for _ in range(moment.weight):
            yield block(
                1,
                number(8, moment.time_ns)
                + sequence
                + number(13, _NEEDS_STATE)
                + block(66, sample),
            )
        breathe()


def _interned(taken: Callstacks, breathe: Callable[[], object]) -> bytes:
    """Names, frames and stacks by number from 1 on; the clock and rate of samples."""
    names: dict[str, int] = {}
    paths: dict[str, int] = {}
    made = []
    cut = len(taken.frames)
    frames = (*taken.frames, ("", "[truncated]", 0, 0))
    for at, one in enumerate(frames):
        file, name, _, line = one[:4]
        name_id = names.setdefault(name, len(names) + 1)
        path_id = paths.setdefault(file, len(paths) + 1)
        made.append(
            block(
                6,
                number(1, at + 1)
                + number(2, name_id)
                # One mapping a file, so that a place in it is a frame of its own.
                + number(3, path_id)
                + number(4, max(line, 1))
                + number(5, path_id)
                + number(6, max(line, 0)),
            )
        )
        breathe()
    for at, stack in enumerate(taken.stacks):
        rooted = (cut if frame == TRUNCATED else frame for frame in reversed(stack))
        # Not packed: the processor takes a packed list for no frame.
        ids = b"".join(number(2, frame + 1) for frame in rooted)
        made.append(block(7, number(1, at + 1) + ids))
        breathe()
    for at, path in enumerate(paths):
        text = path.encode("utf-8", "replace")
        made.append(block(19, number(1, at + 1) + number(7, at + 1)))
        made.append(block(17, number(1, at + 1) + block(2, text)))
        made.append(block(18, number(1, at + 1) + block(2, text)))
    for name, at in names.items():
        text = name.encode("utf-8", "replace")
        made.append(block(5, number(1, at) + block(2, text)))
    timebase = number(2, taken.hz) + number(4, _CPU_CLOCK)
    defaults = number(58, _MONOTONIC) + block(12, block(1, timebase))
    return (
        number(13, _STATE_CLEARED)
        + number(87, 1)
        + block(12, b"".join(made))
        + block(59, defaults)
    )


def encode(taken: Callstacks, pid: int, breathe: Callable[[], object]) -> bytes:
    """All packets, to be put behind those of the process."""
    return b"".join(packets(taken, pid, breathe))
