"""What is recorded of tasks, regions and logs, read back by the timeline."""

import asyncio
import gc
import queue
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stroboscope as strobe
from stroboscope._core import LABELS, recording
from stroboscope.formats.timeline import (
    EXCEPTION,
    FAILED,
    LOG,
    OPEN_LEFT,
    OPEN_RIGHT,
    Task,
    Timeline,
)
from stroboscope.tracing import Recorder, recorder


def read(flight: Recorder) -> Timeline:
    block = flight.snapshot()
    assert block is not None
    return Timeline.read(block)


def named(line: Timeline, name: str) -> Task:
    (task,) = [task for task in line.tasks() if line.name(task.name) == name]
    return task


def regions(line: Timeline, task: Task) -> list[str]:
    return [line.name(span.name) for span in line.spans_of(task)]


def test_nothing_is_recorded_before_somebody_wants_it() -> None:
    """No ring, no events; tasks, regions and logs work all the same."""
    recorder.close()

    with strobe.task("t"), strobe.region("r"):
        strobe.log("c", "%s", 1)

    assert recorder.snapshot() is None
    assert recording.trace_wanted() == 0


def test_regions_nest_in_their_task(flight: Recorder) -> None:
    """By time, on one track, sync and async alike."""

    async def work() -> None:
        async with strobe.region("outer"):
            with strobe.region("inner"):
                await asyncio.sleep(0)

    with strobe.task("job"):
        asyncio.run(work())

    line = read(flight)
    outer, inner = line.spans_of(named(line, "job"))
    assert [line.name(s.name) for s in (outer, inner)] == ["outer", "inner"]
    assert outer.begin_ns <= inner.begin_ns <= inner.end_ns <= outer.end_ns
    assert outer.track == inner.track


def test_functions_of_every_kind_are_regions(flight: Recorder) -> None:
    """They stay what they are; a generator's region lasts until its end."""

    @strobe.region("function")
    def function(x: int) -> int:
        return x

    @strobe.region("coroutine")
    async def coroutine(x: int) -> int:
        return x

    @strobe.region("generator")
    def generator() -> Iterator[int]:
        yield 1
        yield 2

    @strobe.region("async generator")
    async def async_generator() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def work() -> list[int]:
        return [await coroutine(7), *[x async for x in async_generator()]]

    with strobe.task("job"):
        assert function(3) == 3
        assert list(generator()) == [1, 2]
        assert asyncio.run(work()) == [7, 1, 2]

    line = read(flight)
    names = regions(line, named(line, "job"))
    assert names == ["function", "generator", "coroutine", "async generator"]
    assert function.__name__ == "function"


def test_a_region_that_raises_says_so(flight: Recorder) -> None:
    """The span is marked, the exception's type is a note, and the exception goes on."""
    with (
        strobe.task("job"),
        pytest.raises(KeyError),
        strobe.region("fails"),
    ):
        raise KeyError("a secret")

    line = read(flight)
    (span,) = line.spans_of(named(line, "job"))
    assert span.flags == FAILED
    (note,) = [n for n in line.notes() if n.kind == EXCEPTION]
    assert line.name(note.name) == "KeyError"
    assert b"a secret" not in line.block


def test_work_that_runs_beside_has_tracks_of_its_own(flight: Recorder) -> None:
    """Child tasks and threads belong to the task, and what is on one track nests."""

    async def child(i: int) -> None:
        with strobe.region(f"child {i}"):
            await asyncio.sleep(0.002 * (2 - i))

    def in_thread() -> None:
        with strobe.region("thread"):
            time.sleep(0.001)

    async def work() -> None:
        with strobe.region("all"):
            await asyncio.gather(child(0), child(1), asyncio.to_thread(in_thread))

    with strobe.task("job"):
        asyncio.run(work())

    line = read(flight)
    task = named(line, "job")
    spans = {line.name(s.name): s for s in line.spans_of(task)}
    assert set(spans) == {"all", "child 0", "child 1", "thread"}
    assert len({s.track for s in spans.values()}) == 4
    assert spans["thread"].thread != spans["all"].thread
    assert task.tracks == 4 or task.tracks == 5


def test_a_task_is_carried_into_threads_pools_and_queues(flight: Recorder) -> None:
    """`carry` goes on in the task; a Job is a task of its own that comes after it."""

    def work(name: str) -> None:
        with strobe.region(name):
            pass

    jobs: queue.Queue[strobe.Job[None]] = queue.Queue()
    with ThreadPoolExecutor(1) as pool, strobe.task("request"):
        pool.submit(strobe.carry(work), "carried").result()
        jobs.put(strobe.Job(work, "queued"))
    thread = threading.Thread(target=lambda: jobs.get()())
    thread.start()
    thread.join()

    line = read(flight)
    request = named(line, "request")
    assert regions(line, request) == ["carried"]
    (job,) = [t for t in line.tasks() if line.name(t.name).startswith("job:")]
    assert regions(line, job) == ["queued"]
    assert job.parent == request.serial


def test_a_task_within_a_task_is_its_child(flight: Recorder) -> None:
    """Its regions are its own."""
    with strobe.task("outer"), strobe.region("before"):
        with strobe.task("inner"), strobe.region("within"):
            pass
        with strobe.region("after"):
            pass

    line = read(flight)
    outer, inner = named(line, "outer"), named(line, "inner")
    assert inner.parent == outer.serial
    assert regions(line, inner) == ["within"]
    assert regions(line, outer) == ["before", "after"]


def test_labels_inside_a_task_stay_in_it(flight: Recorder) -> None:
    """A `do` block makes a cell, not a task."""
    with strobe.task("job"), strobe.do(step="render"), strobe.region("inside"):
        assert LABELS.get() is not None

    line = read(flight)
    assert regions(line, named(line, "job")) == ["inside"]


def test_a_generator_closed_late_ends_its_region_in_its_own_task(
    flight: Recorder,
) -> None:
    """Wherever and by whomever it is closed, nothing lands on another's track."""

    def stream() -> Iterator[int]:
        with strobe.region("stream"):
            yield 1

    with strobe.task("first"):
        generator = stream()
        next(generator)
    with strobe.task("second"), strobe.region("own"):
        generator.close()
        del generator
        gc.collect()

    line = read(flight)
    first, second = named(line, "first"), named(line, "second")
    assert regions(line, second) == ["own"]
    (span,) = line.spans_of(first)
    assert span.end_ns > first.end_ns
    assert not span.flags & OPEN_RIGHT


def test_a_region_may_end_on_another_thread(flight: Recorder) -> None:
    """It stays in the task it began in; both threads are known."""
    with strobe.task("job"):
        region = strobe.region("moved")
        region.__enter__()
    thread = threading.Thread(target=region.__exit__, args=(None, None, None))
    thread.start()
    thread.join()

    line = read(flight)
    (span,) = line.spans_of(named(line, "job"))
    assert span.thread != span.end_thread
    assert not span.flags


def test_one_region_object_may_be_entered_many_times_at_once(flight: Recorder) -> None:
    """Each coroutine leaves the entry it made."""
    kept = strobe.region("kept")

    async def work(name: str, turns: int) -> None:
        with strobe.task(name), kept:
            for _ in range(turns):
                await asyncio.sleep(0)
            with kept:
                pass

    async def main() -> None:
        await asyncio.gather(work("a", 5), work("b", 2), work("c", 9))

    asyncio.run(main())

    line = read(flight)
    for name in "abc":
        task = named(line, name)
        outer, inner = line.spans_of(task)
        assert outer.begin_ns <= inner.begin_ns <= inner.end_ns <= outer.end_ns
        assert not outer.flags | inner.flags


def test_what_has_not_ended_is_open(flight: Recorder) -> None:
    """A task and its region that go on are drawn to the end."""
    with strobe.task("job"), strobe.region("running"):
        line = read(flight)

    task = named(line, "job")
    (span,) = line.spans_of(task)
    assert task.flags & OPEN_RIGHT
    assert span.flags & OPEN_RIGHT
    assert task.end_ns >= span.end_ns


def test_a_region_dropped_while_entered_ends(flight: Recorder) -> None:
    """Every begin has its end."""
    with strobe.task("job"):
        strobe.region("dropped").__enter__()

    line = read(flight)
    (span,) = line.spans_of(named(line, "job"))
    assert not span.flags & OPEN_RIGHT


def test_a_begin_that_was_overwritten_is_open_on_the_left() -> None:
    """The end alone is enough for the region; the task's row for the task."""
    recorder.close()
    recorder.configure("shop", 32 << 10)  # the smallest: 1024 events
    recorder.set_flight(True)
    try:
        with strobe.task("long"):
            with strobe.region("wide"):
                for _ in range(2000):
                    with strobe.region("small"):
                        pass
            line = read(recorder)
    finally:
        recorder.close()

    assert line.events == 1024
    task = named(line, "long")
    wide = [s for s in line.spans_of(task) if line.name(s.name) == "wide"]
    assert [s.flags for s in wide] == [OPEN_LEFT]
    assert wide[0].begin_ns == line.from_ns
    assert task.begin_ns < line.from_ns


def test_a_region_open_since_long_ago_is_known(flight: Recorder) -> None:
    """Its begin is overwritten and it has not ended: the task's row tells of it."""
    recorder.close()
    recorder.configure("shop", 32 << 10)
    recorder.set_flight(True)
    with strobe.task("stuck"), strobe.region("db.fetch"):
        with strobe.task("other"):
            for _ in range(2000):
                with strobe.region("small"):
                    pass
        line = read(recorder)

    (span,) = line.spans_of(named(line, "stuck"))
    assert line.name(span.name) == "db.fetch"
    assert span.flags & OPEN_RIGHT


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        (("plain %",), "plain %"),
        (("%s of %d", "a", 2), "a of 2"),
        (("%d", "no number"), "%d"),
        (("%s %s", 1), "%s %s"),
        (("bad \ud800 text",), "bad ? text"),
        (("ö" * 400,), "ö" * 256),
        (("x" * 1_000_000,), "x" * 512),
        (("%s", "y" * 1_000_000), "y" * 512),
    ],
)
def test_a_log_is_harmless(
    flight: Recorder, args: tuple[object, ...], shown: str
) -> None:
    """Bad UTF-8, errors of the format and great lengths cost the text, nothing else."""
    with strobe.task("job"):
        strobe.log("cache", *args)  # type: ignore[arg-type]

    line = read(flight)
    (note,) = [n for n in line.notes() if n.kind == LOG]
    assert line.name(note.name) == "cache"
    assert line.text(note) == shown


def test_a_log_is_formatted_only_when_it_is_recorded(flight: Recorder) -> None:
    """Neither at rest nor in a task that is not chosen; what it raises stays in it."""
    asked = []

    class Asked:
        def __str__(self) -> str:
            asked.append(1)
            raise RuntimeError

    flight.set_fraction(0.0)
    with strobe.task("declined"):
        strobe.log("c", "%s", Asked())
    flight.set_fraction(1.0)
    flight.set_flight(False)
    strobe.log("c", "%s", Asked())
    assert asked == []

    flight.set_flight(True)
    strobe.log("c", "%s", Asked())
    assert asked == [1]


def test_old_texts_give_way_to_new_ones(flight: Recorder) -> None:
    """The arena goes round; what is overwritten says so."""
    strobe.log("c", "first")
    for i in range(4000):
        strobe.log("c", "%d %s", i, "x" * 500)

    line = read(flight)
    texts = [line.text(n) for n in line.notes() if n.kind == LOG]
    assert texts[0] == "(overwritten)"
    assert texts[-1].startswith("3999 ")


#: Differing only in the middle, they have one place among the latest names.
ALIKE = st.text(alphabet="ab\u00e9\u20ac", max_size=3).map(
    lambda middle: f"{'-' * 8}{middle}{'-' * 8}"
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ALIKE, max_size=20))
def test_names_that_look_alike_are_told_apart(made: list[str]) -> None:
    """As long, with the same ends, new strings each time or one, over the cap: each
    region has the name it was given."""
    wanted = [*made, *(f"part {i}" for i in range(600)), *made]
    recorder.close()
    recorder.configure("shop", 1 << 20)
    recorder.set_flight(True)
    try:
        for name in wanted:
            with strobe.region("".join(list(name))), strobe.region(name):
                pass

        line = read(recorder)
    finally:
        recorder.close()
    found = [line.name(span.name) for span in line.spans()]
    assert sorted(found) == sorted([*wanted, *wanted])


def test_names_are_few(flight: Recorder) -> None:
    """Beyond the cap all are `(overflow)`; ours still find room."""
    for i in range(7000):
        with strobe.region(f"name {i}"):
            pass
    with strobe.task("late"), pytest.raises(ZeroDivisionError), strobe.region("r"):
        _ = 1 / 0

    line = read(flight)
    spans = [line.name(s.name) for s in line.spans()]
    assert "name 100" in spans
    assert spans.count("(overflow)") >= 7000 - 6144
    assert line.refused["names"] > 0
    assert "ZeroDivisionError" in line.names


def test_a_fraction_is_decided_by_the_trace_id(flight: Recorder) -> None:
    """The same requests everywhere, as OpenTelemetry's ratio sampler chooses them."""
    from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

    flight.set_fraction(0.3)
    sampler = TraceIdRatioBased(0.3)
    for i in range(400):
        trace_id = (i * 0x9E3779B97F4A7C15F39CC0605CEDC835 + 1) % 2**128
        cell = strobe_cell(f"00-{trace_id:032x}-00f067aa0ba902b7-01")
        chosen = sampler.should_sample(None, trace_id, "x").decision
        assert cell is (chosen is Decision.RECORD_AND_SAMPLE)


def strobe_cell(link: object) -> bool:
    from stroboscope._core import LabelCell

    return LabelCell().begin_task("GET", None, link)


def test_a_fraction_without_trace_ids_is_a_share(flight: Recorder) -> None:
    """About so many tasks; a declined task's regions, logs and children are, too."""
    flight.set_fraction(0.25)
    for _ in range(2000):
        with strobe.task("chance"):
            pass
    flight.set_fraction(0.0)
    with strobe.task("no"), strobe.region("no"):
        strobe.log("no", "no")
        with strobe.task("nor this"):
            pass

    line = read(flight)
    assert 350 < sum(line.name(t.name) == "chance" for t in line.tasks()) < 650
    assert "no" not in line.names
    assert "nor this" not in line.names


def test_a_name_that_is_no_text_is_refused() -> None:
    """Where it is written, with or without a recorder."""
    for make in (strobe.region, strobe.task):
        with pytest.raises(TypeError, match="str"):
            make(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        strobe.log("only a category")  # type: ignore[call-arg]


def test_the_ring_can_be_closed_and_opened_while_regions_run(flight: Recorder) -> None:
    """What was begun in another ring leaves no trace in this one."""
    with strobe.task("job"), strobe.region("across"):
        flight.close()
        flight.set_flight(True)
        with strobe.region("new"):
            pass

    line = read(flight)
    assert list(line.tasks()) == []
    assert [line.name(s.name) for s in line.spans()] == []
