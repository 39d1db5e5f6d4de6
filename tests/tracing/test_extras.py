"""What a capture collects beside events: known causes, found again by Perfetto itself."""

import asyncio
import contextlib
import functools
import gc
import json
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio.to_thread
import pytest
from perfetto_sql import Processor

from stroboscope._core import LABELS, LabelCell, engine
from stroboscope._core.contention import contention
from stroboscope.formats.timeline import WAITS, Timeline
from stroboscope.tracing import Recorder, captures, region, task
from stroboscope.tracing.extras.counters import Counters
from stroboscope.tracing.statistics import by_type

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


def is_about(found: float, built: float) -> bool:
    """What lasts as long as a sleep lasts no shorter; a busy machine makes it longer."""
    return built * 0.85 <= found < built * 6


@pytest.fixture
def captured(flight: Recorder, processor: Processor) -> Any:
    """Take a capture for as long as something runs, and load it; what it says of itself."""

    def take(work: Callable[[], object]) -> dict[str, str]:
        begun = threading.Event()

        def run() -> None:
            begun.wait(30)
            work()

        def is_cancelled() -> bool:
            begun.set()
            return not thread.is_alive()

        thread = threading.Thread(target=run, name="worker")
        thread.start()
        taken = captures.record(30, is_cancelled, "perfetto")
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
    """0.3 s of burning on a named thread are found where and when they were."""
    began_ns = time.monotonic_ns()
    said = captured(lambda: burn_in_here(0.3))
    took_ns = time.monotonic_ns() - began_ns

    rows = processor.query(
        f"{STACKED} select count(distinct sample) as n, thread.name as thread,"
        " max(ts) - min(ts) as span_ns from up join perf_sample on sample ="
        " perf_sample.id join thread using(utid) join stack_profile_frame f on"
        " f.id = up.frame where f.name = 'burn_in_here' group by thread.name"
    )
    assert len(rows) == 1
    assert rows[0]["thread"] == "worker"
    assert rows[0]["n"] == pytest.approx(0.3 * 250, rel=0.35)
    assert 0.2e9 < rows[0]["span_ns"] < took_ns
    assert int(said["cpu_samples_periods"]) >= rows[0]["n"]
    assert 0 < int(said["cpu_samples_hz"]) <= 250


def test_a_stack_is_root_first_and_knows_its_file(
    captured: Any, processor: Processor
) -> None:
    """The leaf's callers are above it, the outermost at depth 0."""
    captured(lambda: burn_in_here(0.3))

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


SLICES = (
    "select slice.ts as ts, slice.dur as dur, slice.name as name, thread.name as thread,"
    " extract_arg(slice.arg_set_id, 'debug.queued_us') as queued_us,"
    " extract_arg(slice.arg_set_id, 'debug.collected') as collected,"
    " extract_arg(slice.arg_set_id, 'debug.task') as task"
    " from slice join thread_track on slice.track_id = thread_track.id"
    " join thread using(utid) where slice.name glob '{}' order by ts"
)


def test_a_collection_is_a_slice_with_generation_and_yield(
    captured: Any, processor: Processor
) -> None:
    """A cycle of known size, collected on a named thread."""

    def make_and_collect() -> None:
        gc.collect()
        for _ in range(1000):
            one: list[Any] = []
            one.append(one)
        gc.collect(2)

    gc.disable()
    gc.freeze()  # the suite's own objects take too long to look at
    try:
        captured(make_and_collect)
    finally:
        gc.unfreeze()
        gc.enable()

    rows = processor.query(SLICES.format("gc generation 2"))
    assert [row["thread"] for row in rows] == ["worker", "worker"]
    assert 999 <= rows[1]["collected"] < 1100  # the last is still held
    assert all(0 < row["dur"] < 1e9 for row in rows)


def block_50_ms() -> None:
    time.sleep(0.05)


def waits_behind() -> None:
    pass


async def stepping() -> None:
    cell = LabelCell()
    cell.begin_task("GET", None, None)
    LABELS.set(cell)
    await asyncio.sleep(0.01)
    time.sleep(0.02)  # noqa: ASYNC251
    cell.end_task("http:/stepping", 200)


def test_a_callback_is_a_slice_with_its_run_time_and_its_wait(
    captured: Any, processor: Processor
) -> None:
    """One that blocks 50 ms, and one that was queued behind it."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(block_50_ms)
        loop.call_soon(functools.partial(waits_behind))
        loop.call_later(0.01, waits_behind)
        await asyncio.sleep(0.2)

    captured(lambda: asyncio.run(main()))

    (blocks,) = processor.query(SLICES.format("block_50_ms"))
    assert is_about(blocks["dur"], 50e6)
    assert blocks["queued_us"] < 50_000
    assert blocks["thread"] == "worker"
    waits = processor.query(SLICES.format("waits_behind"))
    assert is_about(waits[0]["queued_us"], 50e3)
    assert is_about(waits[1]["queued_us"], 40e3), "from when the timer was due"
    assert waits[1]["queued_us"] < waits[0]["queued_us"]


def test_a_step_is_called_by_its_coroutine_and_belongs_to_its_request(
    captured: Any, processor: Processor
) -> None:
    """Which task ran when on which thread, exactly."""

    async def main() -> None:
        await asyncio.gather(stepping(), stepping())

    captured(lambda: asyncio.run(main()))

    steps = [r for r in processor.query(SLICES.format("stepping")) if r["task"]]
    assert len(steps) == 2
    assert len({row["task"] for row in steps}) == 2
    runs = processor.query(
        "select slice.ts as ts, slice.dur as dur, extract_arg(slice.arg_set_id,"
        " 'debug.task') as task from slice join track on track.id = slice.track_id"
        " where track.name = 'tasks on worker' and slice.dur > 15000000 order by ts"
    )
    exact = [(row["ts"], row["dur"], row["task"]) for row in steps]
    assert [(row["ts"], row["dur"], row["task"]) for row in runs] == exact


def test_of_uvloop_the_lag_is_seen_and_the_rest_is_said(
    captured: Any, processor: Processor
) -> None:
    """Its callbacks have no slices; the file does not pretend that nothing ran."""
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")

    async def main() -> None:
        asyncio.get_running_loop().call_soon(block_50_ms)
        await asyncio.sleep(0.5)

    said = captured(lambda: uvloop.run(main()))

    assert said["loop_callbacks"] == "asyncio's own loops only: uvloop's are not seen"
    assert processor.query(SLICES.format("block_50_ms")) == []
    lag = "select count(*) as n from counter_track where name = 'loop lag us'"
    assert processor.query(lag) == [{"n": 1}]


def hold_the_only_worker() -> None:
    time.sleep(0.06)


def wants_a_worker() -> None:
    pass


def test_a_job_says_how_long_it_waited_for_a_worker(
    captured: Any, processor: Processor
) -> None:
    """One worker, two jobs; and one by asyncio's way, in its context."""

    def main() -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="pool") as pool:
            pool.submit(hold_the_only_worker)
            pool.submit(wants_a_worker)
        asyncio.run(asyncio.to_thread(waits_behind))

    captured(main)

    (first,) = processor.query(SLICES.format("hold_the_only_worker"))
    (second,) = processor.query(SLICES.format("wants_a_worker"))
    assert first["queued_us"] < second["queued_us"]
    assert first["thread"] == second["thread"] == "pool_0"
    assert is_about(second["queued_us"], 60e3)
    assert len(processor.query(SLICES.format("waits_behind"))) == 1


def waits_for_lock(lock: threading.Lock) -> None:
    with lock:
        pass


def waits_for_news(news: threading.Event) -> None:
    news.wait()


def test_a_wait_is_a_slice_of_its_length_by_who_waits(
    captured: Any, processor: Processor
) -> None:
    """A lock held, and an event unset, for 60 ms; the lock is older than the capture."""
    lock, news = threading.Lock(), threading.Event()

    def main() -> None:
        lock.acquire()
        waiting = [
            threading.Thread(target=waits_for_lock, args=(lock,), name="for lock"),
            threading.Thread(target=waits_for_news, args=(news,), name="for news"),
        ]
        for one in waiting:
            one.start()
        time.sleep(0.06)
        lock.release()
        news.set()
        for one in waiting:
            one.join()

    captured(main)

    (held,) = processor.query(SLICES.format("wait for lock in waits_for_lock"))
    (unset,) = processor.query(SLICES.format("wait for news in waits_for_news"))
    assert (held["thread"], unset["thread"]) == ("for lock", "for news")
    assert is_about(held["dur"], 60e6)
    assert is_about(unset["dur"], 60e6)
    assert contention.copy("block") is None or contention.block_rate_ns


async def takes_async_lock(lock: asyncio.Lock) -> None:
    async with lock:
        pass


async def waits_in_vain(news: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.06):
            await news.wait()


async def wants_a_thread(limiter: anyio.CapacityLimiter) -> None:
    await anyio.to_thread.run_sync(time.sleep, 0.06, limiter=limiter)


ON_TASK = (
    "select s.name as name, s.dur as dur, p.name as within from slice s"
    " left join slice p on p.id = s.parent_id where s.name = '{}' order by s.ts"
)


def test_a_coroutines_wait_is_a_slice_on_its_tasks_track(
    captured: Any, processor: Processor
) -> None:
    """For a lock, for news that never come, and for one of anyio's threads: 60 ms each."""

    async def main() -> None:
        lock, news = asyncio.Lock(), asyncio.Event()
        limiter = anyio.CapacityLimiter(1)
        async with asyncio.TaskGroup() as group:
            await lock.acquire()
            with task("job"):
                for waiting in (
                    takes_async_lock(lock),
                    waits_in_vain(news),
                    wants_a_thread(limiter),
                    wants_a_thread(limiter),
                ):
                    group.create_task(waiting)
            await asyncio.sleep(0.06)
            lock.release()

    captured(lambda: asyncio.run(main()))

    def lengths(name: str) -> list[int]:
        rows = processor.query(ON_TASK.format(name))
        # Beside the task, in lanes of the child tasks; not on a thread.
        assert not processor.query(SLICES.format(name))
        return [row["dur"] for row in rows]

    (for_lock,) = lengths("wait for lock in takes_async_lock")
    (for_news,) = lengths("wait for news in waits_in_vain")
    (for_thread,) = lengths("wait for news in wants_a_thread")
    assert all(is_about(dur, 60e6) for dur in (for_lock, for_news, for_thread))


def test_every_wait_of_a_coroutine_has_its_end_in_its_own_task(
    captured: Any, processor: Processor, flight: Recorder
) -> None:
    """300 tasks over three locks and a queue, a third of them cancelled as they wait."""
    drawn = random.Random(7)
    may_wait = []

    async def one(number: int, locks: list[asyncio.Lock], queue: Any) -> None:
        with task(f"task {number}"):
            for _ in range(3):
                lock = drawn.choice(locks)
                may_wait.append(number)
                async with lock:
                    await asyncio.sleep(0)
                if number % 2:
                    queue.put_nowait(number)
                else:
                    may_wait.append(number)
                    await queue.get()

    async def main() -> None:
        locks, queue = [asyncio.Lock() for _ in range(3)], asyncio.Queue[int]()
        tasks = [asyncio.create_task(one(n, locks, queue)) for n in range(300)]
        await asyncio.sleep(0.001)
        for number in range(0, 300, 3):
            tasks[number].cancel()
        await asyncio.wait(tasks, timeout=5)
        for left in tasks:
            left.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    captured(lambda: asyncio.run(main()))
    block = flight.snapshot()
    assert block is not None
    line = Timeline.read(block)

    found = 0
    for known in line.tasks():
        for span in line.spans_of(known):
            assert span.flags == WAITS
            assert known.begin_ns <= span.begin_ns <= span.end_ns <= known.end_ns
            found += 1
    assert line.lost == 0
    assert 100 < found <= len(may_wait)


def test_a_wait_of_a_coroutine_is_no_region(captured: Any, flight: Recorder) -> None:
    """Where a task's time went is not told otherwise because somebody took a trace."""

    async def main() -> None:
        news = asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, news.set)
        with task("waits"), region("inside"):
            await news.wait()

    captured(lambda: asyncio.run(main()))
    block = flight.snapshot()
    assert block is not None
    line = Timeline.read(block)

    (found,) = [one for one in by_type(line) if one.name == "waits"]
    assert found.regions.keys() == {"inside"}
    (told,) = [t for t in line.tasks() if line.name(t.name) == "waits"]
    assert len(list(line.spans_of(told))) == 2


def test_counters_are_read_ten_times_a_second(
    captured: Any, processor: Processor
) -> None:
    """The lag of a loop that was blocked for 600 ms; threads, tasks, memory."""

    async def main() -> None:
        await asyncio.sleep(0.25)
        time.sleep(0.6)  # noqa: ASYNC251
        await asyncio.sleep(0.6)

    captured(lambda: asyncio.run(main()))

    rows = processor.query(
        "select counter_track.name as name, count(*) as n, max(value) as most from"
        " counter join counter_track on counter.track_id = counter_track.id group by 1"
    )
    found = {row["name"]: row for row in rows}
    assert 5 <= found["threads"]["n"] <= 40
    assert found["threads"]["most"] >= 2
    assert found["rss bytes"]["most"] > 10 << 20
    assert found["asyncio tasks"]["most"] >= 1
    assert 100_000 < found["loop lag us"]["most"] < 5_000_000


def test_a_loop_that_is_known_has_its_lag_without_a_task(flight: Recorder) -> None:
    """As all have to be from 3.14 on, where nobody else tells of tasks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        found = flight.capture(0.3, lambda: False, [Counters(lambda: [loop])])
        without = flight.capture(0.3, lambda: False, [Counters()])
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def counters(block: bytes) -> set[str]:
        line = Timeline.read(block)
        return {line.name(count.name) for count in line.counts()}

    assert "loop lag us" in counters(found.block)
    assert "loop lag us" not in counters(without.block)


def test_the_json_form_says_what_it_leaves_out(flight: Recorder) -> None:
    """Samples are counted on its first slice, and are not there."""
    made = json.loads(captures.record(0.1, lambda: False, "json"))

    (first,) = [e for e in made["traceEvents"] if e["name"] == "about this trace"]
    assert "cpu_samples" in first["args"]
    assert first["args"]["cpu_samples_note"] == "not in this form: Perfetto's only"


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
