"""Clocks that step: no slice ends before it begins, and no budget is had twice."""

import struct
import time
from pathlib import Path

import pytest
from asking import KEY
from hypothesis import given, settings
from hypothesis import strategies as st
from perfetto_sql import Processor

import stroboscope as strobe
from stroboscope.endpoints.evidence import Evidence
from stroboscope.formats import chrome, perfetto
from stroboscope.formats.timeline import Timeline
from stroboscope.settings import Settings
from stroboscope.tracing import Recorder, recorder
from stroboscope.tracing.statistics import by_type
from stroboscope.tracing.triggers import Hit

EVENT = struct.Struct("<QQIIII")
#: Of sb_box: where events are, and tasks that live; of the latter each is so long.
EVENTS_AT, TASKS_AT, ROW_BYTES = 104, 56, 64
WORD = (1 << 64) - 1
ODD = 0xFF51AFD7ED558CCD


def check_of(sequence: int, event: tuple[int, ...]) -> int:
    """`sb_event_check` of `_core/src/box.h`."""
    time_ns, head, name, argument, lane, _ = event
    mixed = (sequence + 0x9E3779B97F4A7C15) * ODD & WORD
    mixed = (mixed ^ time_ns) * ODD & WORD
    mixed = (mixed ^ head) * ODD & WORD
    mixed = (mixed ^ mixed >> 31 ^ (name << 32 | argument)) * ODD & WORD
    return ((mixed ^ lane) * ODD & WORD) >> 32


def stepped(block: bytes, steps: dict[int, int]) -> bytes:
    """The block as if the clock had stepped before these events, by so many ns."""
    found = bytearray(block)
    at, shift = struct.unpack_from("<Q", found, EVENTS_AT)[0], 0
    for number in range(Timeline.read(block).events):
        place = at + number * EVENT.size
        event = EVENT.unpack_from(found, place)
        assert check_of(number, event) == event[5]
        shift += steps.get(number, 0)
        moved = (max(1, event[0] + shift), *event[1:])
        EVENT.pack_into(found, place, *moved[:5], check_of(number, moved))
    rows_at, rows = struct.unpack_from("<QQ", found, TASKS_AT)
    for row in range(rows_at, rows_at + rows * ROW_BYTES, ROW_BYTES):
        for begin_at in (row + 8, row + 56):  # of the task, and of its region
            (begin_ns,) = struct.unpack_from("<Q", found, begin_at)
            if begin_ns:
                struct.pack_into("<Q", found, begin_at, max(1, begin_ns + shift))
    return bytes(found)


def recorded() -> bytes:
    recorder.close()
    recorder.configure("shop", 64 << 10)
    recorder.set_flight(True)
    for number in range(6):
        with strobe.task("job"), strobe.region("outer"):
            with strobe.region("inner"):
                strobe.log("cache", "miss %d", number)
            time.sleep(0.0002)
    with strobe.task("open"), strobe.region("unfinished"):
        block = recorder.snapshot()
    recorder.close()
    assert block is not None
    return block


BLOCK = recorded()
EVENTS = Timeline.read(BLOCK).events
STEP = st.integers(-3_600_000_000_000, 3_600_000_000_000) | st.integers(-500_000, 0)


@settings(deadline=None)
# The last two events are those of the task that lives.
@given(st.dictionaries(st.integers(0, EVENTS - 2), STEP, max_size=4))
def test_no_slice_ends_before_it_begins(steps: dict[int, int]) -> None:
    """Whenever it steps, wherever to: each begin still has its own end."""
    line = Timeline.read(stepped(BLOCK, steps))

    assert (line.torn, line.events) == (0, EVENTS)
    assert all(task.begin_ns <= task.end_ns for task in line.tasks())
    assert all(span.begin_ns <= span.end_ns for span in line.spans())
    assert len(list(line.spans())) == 13
    for one in by_type(line):
        assert one.time_ns >= 0
        assert one.unaccounted_ns >= 0
        assert all(region.time_ns >= 0 for region in one.regions.values())
    perfetto.encode(line)
    chrome.encode(line)


@pytest.mark.parametrize("step_ns", [-50_000, -3_600_000_000_000])
def test_perfetto_opens_what_a_clock_has_stepped_in(
    processor: Processor, step_ns: int
) -> None:
    """In the middle of a region: all tasks are there, and no error is counted."""
    processor.load(
        perfetto.encode(Timeline.read(stepped(BLOCK, {EVENTS // 2: step_ns})))
    )

    assert processor.problems() == []
    rows = processor.query("select count(*) as n from slice where name = 'inner'")
    assert rows[0]["n"] == 6


class Clocks:
    """The wall's, that anybody may set, and the monotonic one."""

    def __init__(self) -> None:
        self.wall_s = 1_700_000_000.0
        self.passed_s = 1000.0

    def time_s(self) -> float:
        return self.wall_s

    def monotonic_ns(self) -> int:
        return int(self.passed_s * 1e9)


def test_a_wall_clock_set_back_gives_no_second_budget(
    tmp_path: Path, flight: Recorder
) -> None:
    """A day back, again and again: an hour of this process stays an hour, and what is
    kept after it is listed and read as all else."""
    with strobe.task("early"):
        pass
    chosen = Settings(
        keys=(KEY,),
        service="shop",
        evidence="errors per_hour=2 window=60",
        evidence_dir=str(tmp_path),
    )
    clocks = Clocks()
    made = Evidence(chosen, None, clocks)
    for number in range(6):
        made.take(Hit("error", f"/{number % 3}", ""))
        while made.kept + sum(made.dropped.values()) <= number or made._works:
            time.sleep(0.005)
        clocks.wall_s -= 86_400
        clocks.passed_s += 1

    assert made.kept == len(made.pieces()) == 2
    assert made.dropped == {"window": 2, "hour": 2}
    clocks.passed_s += 3600
    made.take(Hit("error", "/late", ""))
    while made.kept < 3:
        time.sleep(0.005)
    assert {piece.about["endpoint"] for piece in made.pieces()} == {"/0", "/1", "/late"}
    assert all(made.get(piece.id) is not None for piece in made.pieces())
