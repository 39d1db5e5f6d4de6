"""What a capture collects beside events: known causes, found again by Perfetto itself."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from perfetto_sql import Processor

from stroboscope._core import engine
from stroboscope.tracing import Recorder, captures, extras
from stroboscope.tracing.extras import Collector, Fact, Running

ABOUT = (
    "select key, display_value as value from args join slice using(arg_set_id) "
    "where slice.name = 'about this trace'"
)
STACKED = (
    "with recursive up(sample, callsite, frame, depth) as ("
    " select s.id, c.parent_id, c.frame_id, c.depth from perf_sample s"
    " join stack_profile_callsite c on c.id = s.callsite_id"
    " union all select up.sample, c.parent_id, c.frame_id, c.depth from up"
    " join stack_profile_callsite c on c.id = up.callsite) "
)


def about(processor: Processor) -> dict[str, str]:
    return {
        row["key"].removeprefix("debug."): row["value"]
        for row in processor.query(ABOUT)
    }


@pytest.fixture
def captured(flight: Recorder, processor: Processor) -> Any:
    """Take a capture while something runs, and load it; what the file says of itself."""

    def take(work: Callable[[], object], seconds: float = 1.0) -> dict[str, str]:
        thread = threading.Thread(target=work, name="worker")
        thread.start()
        taken = captures.record(seconds, lambda: False, "perfetto")
        thread.join()
        processor.load(taken)
        assert processor.problems() == []
        return about(processor)

    return take


def burn_in_here(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(200))


def test_cpu_samples_have_their_moment_thread_and_stack(
    captured: Any, processor: Processor
) -> None:
    """A second of burning on a named thread is found where and when it was."""
    began_ns = time.monotonic_ns()
    said = captured(lambda: burn_in_here(0.6), 1.2)
    took_ns = time.monotonic_ns() - began_ns

    rows = processor.query(
        f"{STACKED} select count(distinct sample) as n, thread.name as thread,"
        " max(ts) - min(ts) as span_ns from up join perf_sample on sample ="
        " perf_sample.id join thread using(utid) join stack_profile_frame f on"
        " f.id = up.frame where f.name = 'burn_in_here' group by thread.name"
    )
    assert len(rows) == 1
    assert rows[0]["thread"] == "worker"
    assert rows[0]["n"] == pytest.approx(0.6 * int(said["cpu_samples_hz"]), rel=0.3)
    assert 0.3e9 < rows[0]["span_ns"] < took_ns
    assert int(said["cpu_samples"]) >= rows[0]["n"] * 0.9


def test_a_stack_is_root_first_and_knows_its_file(
    captured: Any, processor: Processor
) -> None:
    """The leaf's callers are above it, the outermost at depth 0."""
    captured(lambda: burn_in_here(0.3), 0.6)

    rows = processor.query(
        f"{STACKED} select f.name as name, m.name as file, depth from up"
        " join stack_profile_frame f on f.id = up.frame"
        " join stack_profile_mapping m on m.id = f.mapping"
        " where sample in (select sample from up join stack_profile_frame f on"
        " f.id = up.frame where f.name = 'burn_in_here') order by sample, depth"
    )
    names = [row["name"] for row in rows]
    assert rows[0]["depth"] == 0
    assert names.index("Thread.run") < names.index("burn_in_here")
    assert {r["file"] for r in rows if r["name"] == "burn_in_here"} == {__file__}


def test_a_capture_raises_the_rate_of_others_for_as_long_as_it_lasts(
    flight: Recorder,
) -> None:
    """A profile at 50 Hz goes on at 50 Hz, and its sum is not changed."""
    window = engine.open_window(50)
    try:
        during: list[int] = []

        def is_cancelled() -> bool:
            during.append(engine.hz)
            return False

        captures.record(0.2, is_cancelled, "perfetto")
        assert set(during) == {250}
        assert engine.hz == 50
    finally:
        window.close()


class Broken(Collector):
    """Hooks something and fails at one of its steps."""

    name = "broken"
    hooked = False

    def __init__(self, step: str) -> None:
        self._step = step

    def start(self) -> None:
        Broken.hooked = True
        self._fail("start")

    def tick(self) -> None:
        self._fail("tick")

    def stop(self) -> Sequence[Fact]:
        Broken.hooked = False
        self._fail("stop")
        return [("fine", 1)]

    def _fail(self, step: str) -> None:
        if step == self._step:
            raise ZeroDivisionError(step)


@pytest.mark.parametrize("step", ["tick", "stop"])
def test_a_collector_that_fails_is_stopped_and_told_of(
    step: str, flight: Recorder
) -> None:
    """The capture goes on without it, and so do the other collectors."""
    taken = flight.capture(0.1, lambda: False, [Broken(step), extras.Collector()])

    assert taken.ended == "complete"
    assert ("broken", "not collected: ZeroDivisionError") in taken.facts
    assert not Broken.hooked


def test_a_collector_that_cannot_start_leaves_nothing(flight: Recorder) -> None:
    """What it had hooked by then is put back."""
    taken = flight.capture(0.05, lambda: False, [Broken("start")])

    assert ("broken", "not collected: ZeroDivisionError") in taken.facts
    assert not Broken.hooked


def test_collectors_stop_when_the_capture_fails(flight: Recorder) -> None:
    """An exception inside the capture's own wait."""

    def is_cancelled() -> bool:
        raise KeyError

    with pytest.raises(KeyError):
        flight.capture(1, is_cancelled, [Broken("")])

    assert not Broken.hooked


def test_running_stops_the_latest_first() -> None:
    """So that what was hooked twice comes off in turn."""
    order: list[str] = []

    class Noted(Collector):
        def stop(self) -> Sequence[Fact]:
            order.append(self.name)
            return ()

    one, two = Noted(), Noted()
    one.name, two.name = "one", "two"
    running = Running()
    running.start([one, two])
    running.stop()

    assert order == ["two", "one"]
