"""A capture has all that happened while it was taken, or says what it has not."""

import contextvars
import ctypes
import os
import threading
import time

import pytest

import stroboscope as strobe
from stroboscope._core import recording
from stroboscope.errors import EngineUnavailable
from stroboscope.formats.timeline import LOG, OPEN_LEFT, OPEN_RIGHT, Timeline
from stroboscope.tracing import Recorder, captures, recorder

SMALLEST = 32 << 10  # 1024 events


def regions(count: int) -> None:
    for _ in range(count):
        with strobe.region("r"):
            pass


@pytest.fixture
def smallest(flight: Recorder) -> Recorder:
    """The recorder with a ring of 1024 events."""
    flight.close()
    flight.configure("shop", SMALLEST)
    flight.set_flight(True)
    return flight


def taken() -> Timeline:
    recording.trace_capture_drain()
    block = recording.trace_capture_end()
    assert block is not None
    return Timeline.read(block)


@pytest.mark.parametrize("count", [0, 100, 512, 513, 5000])
def test_lost_events_are_counted_to_the_event(smallest: Recorder, count: int) -> None:
    """Two a region; what the ring cannot hold until it is drained is lost."""
    regions(700)
    recording.trace_capture_begin(100_000)
    regions(count)

    line = taken()

    assert line.lost == max(0, 2 * count - 1024)
    assert line.events == 2 * count - line.lost
    assert line.torn == 0


def test_two_hundred_thousand_events_a_second_are_all_there(flight: Recorder) -> None:
    """None is lost: every begin has its end, but for those at the capture's edges."""
    done = threading.Event()

    def work() -> None:
        written, began = 0, time.perf_counter()
        while not done.is_set():
            regions(100)
            written += 200
            while written / 200_000 > time.perf_counter() - began:
                time.sleep(0.0005)

    flight.close()
    flight.configure("shop", 8 << 20)
    flight.set_flight(True)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        capture = flight.capture(1.0, lambda: False)
    finally:
        done.set()
        thread.join()

    line = Timeline.read(capture.block)
    assert (line.lost, line.torn) == (0, 0)
    spans = list(line.spans())
    assert sum(bool(span.flags) for span in spans) <= 2
    assert 2 * len(spans) - 2 <= line.events <= 2 * len(spans)
    assert line.events > 1000


def test_a_capture_that_is_full_ends_and_says_so(
    flight: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what it has until then, which is whole."""
    import sys

    module = sys.modules["stroboscope.tracing.recorder"]
    monkeypatch.setattr(module, "CAPTURE_BYTES_CAP", 5000 * recording.EVENT_BYTES)
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            regions(50)
            time.sleep(0.0001)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        began = time.monotonic()
        capture = flight.capture(30.0, lambda: False)
    finally:
        done.set()
        thread.join()

    assert capture.ended == "full"
    assert time.monotonic() - began < 20
    assert Timeline.read(capture.block).events == 5000


@pytest.mark.parametrize("tried_from", [1000, 10**9])
@pytest.mark.parametrize("form", captures.FORMATS)
def test_what_is_sent_is_below_the_cap_and_says_what_is_left_out(
    flight: Recorder, form: str, tried_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is cut off: what is there begins at its beginning and is whole."""
    monkeypatch.setattr(captures, "_TRIED_FROM", tried_from)
    flight.close()
    flight.configure("shop", 4 << 20)
    flight.set_flight(True)
    with strobe.task("before"):
        recording.trace_capture_begin(100_000)
        for number in range(8000):
            with strobe.task("job"), strobe.region(f"r{number % 10}"):
                pass
        line = taken()
    lines = []

    def encoded(cut: Timeline, facts: captures.Facts) -> bytes:
        lines.append((cut, dict(facts)))
        return captures.encode(cut, form, facts)

    whole = len(captures.encode(line, form))
    body = captures.within(line, (), encoded, whole // 3)

    assert whole // 5 < len(body) <= whole // 3
    last, facts = lines[-1]
    assert (facts["bytes_cap"], facts["events_left_out"]) == (
        whole // 3,
        line.events - last.events,
    )
    assert (last.torn, last.from_ns) == (0, line.from_ns)
    assert last.to_ns < line.to_ns
    known = {task.serial: task for task in line.tasks()}
    closed = [task for task in last.tasks() if not task.flags & OPEN_RIGHT]
    assert len(closed) > 1000
    assert all(known[t.serial].end_ns == t.end_ns for t in closed)
    names = {last.name(task.name) for task in last.tasks()}
    assert names == {"before", "job"}
    assert b"events_left_out" in body
    # Of one that fits nothing is left out, and that is said as well.
    assert captures.within(line, (), encoded, 2 * whole)
    assert lines[-1][1]["events_left_out"] == 0


def test_a_client_that_goes_away_ends_it(flight: Recorder) -> None:
    """At once, and the next one can be taken."""
    began = time.monotonic()
    capture = flight.capture(30.0, lambda: time.monotonic() - began > 0.1)

    assert capture.ended == "cancelled"
    assert time.monotonic() - began < 5
    assert flight.capture(0.01, lambda: False).ended == "complete"


def test_only_one_is_taken_at_a_time(flight: Recorder) -> None:
    """The second is refused, the first is none the worse."""
    recording.trace_capture_begin(100_000)
    with pytest.raises(EngineUnavailable):
        flight.capture(0.01, lambda: False)
    regions(3)

    assert taken().events == 6


def test_a_capture_needs_no_flight_recorder() -> None:
    """It begins to record, and ends it."""
    recorder.close()
    recorder.configure("shop", SMALLEST)
    seen = threading.Event()

    def work() -> None:
        while not recording.trace_wanted():
            time.sleep(0.001)
        with strobe.task("job"), strobe.region("r"):
            seen.set()

    thread = threading.Thread(target=work)
    thread.start()
    capture = recorder.capture(10.0, seen.is_set)
    thread.join()

    assert recording.trace_wanted() == 0
    line = Timeline.read(capture.block)
    assert [line.name(task.name) for task in line.tasks()] == ["job"]


def test_a_fork_that_python_does_not_see_writes_nothing(flight: Recorder) -> None:
    """As an extension may fork: the child has no ring, least of all its parent's."""
    block = flight.snapshot()
    assert block is not None
    before = Timeline.read(block).events
    libc = ctypes.PyDLL(None)
    child = libc.fork()
    if child == 0:
        regions(3)
        os._exit(0 if recording.trace_snapshot(1024) is None else 3)
    assert os.waitpid(child, 0)[1] == 0

    block = flight.snapshot()
    assert block is not None
    assert Timeline.read(block).events == before


def test_what_began_before_is_known(flight: Recorder) -> None:
    """A task that runs already is named; its region that ends inside is open left."""
    with strobe.task("early"):
        with strobe.region("wide"):
            recording.trace_capture_begin(100_000)
            strobe.log("cache", "inside")
        line = taken()

    (task,) = line.tasks()
    assert line.name(task.name) == "early"
    assert task.begin_ns < line.from_ns
    (span,) = line.spans_of(task)
    assert span.flags == OPEN_LEFT
    assert [line.text(n) for n in line.notes() if n.kind == LOG] == ["inside"]


def test_a_fork_in_the_middle_leaves_the_capture_to_the_parent(
    flight: Recorder,
) -> None:
    """The child records nothing until it begins to, and what it left open is harmless."""
    recording.trace_capture_begin(100_000)
    with strobe.task("parent"), strobe.region("across"):
        child = os.fork()
        if child == 0:
            try:
                regions(3)
                clean = recording.trace_wanted() == 0 and recorder.snapshot() is None
                recorder.set_flight(True)
                regions(3)  # of a task that is its parent's
                contextvars.Context().run(regions, 2)
                block = recorder.snapshot()
                assert block is not None
                os._exit(0 if clean and Timeline.read(block).events == 4 else 3)
            finally:
                os._exit(4)
        assert os.waitpid(child, 0)[1] == 0

    line = taken()
    assert [line.name(s.name) for s in line.spans()] == ["across"]
