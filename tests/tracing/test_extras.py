"""What a capture collects beside events: known causes, found again by Perfetto itself."""

import asyncio
import contextlib
import functools
import gc
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio.to_thread
import pytest
from hooking import hooks, of_captures
from hypothesis import given
from hypothesis import strategies as st
from perfetto_sql import Processor

from stroboscope._core import LABELS, LabelCell, engine
from stroboscope._core.contention import contention
from stroboscope._core.replacing import REPLACED
from stroboscope.formats.timeline import WAITS, Timeline
from stroboscope.tracing import Recorder, captures, extras, region, task
from stroboscope.tracing.extras import Collector, Fact, Running
from stroboscope.tracing.extras.callbacks import LoopCallbacks
from stroboscope.tracing.extras.counters import Counters
from stroboscope.tracing.extras.pools import PoolJobs
from stroboscope.tracing.extras.waits import Waits
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


FORKED = """
import asyncio, gc, os, sys, threading, time
from stroboscope.tracing import captures

def hooks():
    bound = asyncio.mixins._LoopBoundMixin
    return [
        list(gc.callbacks),
        vars(asyncio.events.Handle)["_run"],
        vars(bound)["_get_loop"],
    ]

before = hooks()
capture = threading.Thread(target=captures.record, args=(1, lambda: False, "perfetto"))
capture.start()
time.sleep(0.3)
assert hooks() != before
if (pid := os.fork()) == 0:
    os._exit(0 if hooks() == before else 1)
capture.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_child_forked_during_a_capture_has_no_hooks() -> None:
    """It takes none itself, and nobody would take them off."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, timeout=60
    )

    assert done.returncode == 0, done.stderr.decode()


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


def test_all_is_as_it_was_however_a_capture_ends(flight: Recorder) -> None:
    """The very same objects; during it, others."""
    before, during = of_captures(), []

    def is_cancelled() -> bool:
        during.append(of_captures())
        raise KeyError

    captures.record(0.05, lambda: False, "perfetto")
    assert of_captures() == before
    with pytest.raises(KeyError):
        captures.record(0.05, is_cancelled, "perfetto")

    assert of_captures() == before
    assert all(a != b for a, b in zip(before, during[0], strict=True))


def test_what_others_replaced_meanwhile_stays_theirs(flight: Recorder) -> None:
    """Ours is below it, and does nothing any more. Where they put back what was there
    before us, the next capture leaves nothing of ours either."""
    original = vars(asyncio.events.Handle)["_run"]
    collector = LoopCallbacks()
    collector.start()
    ours = asyncio.events.Handle._run
    try:
        theirs: Any = lambda self: ours(self)  # noqa: E731
        asyncio.events.Handle._run = theirs  # type: ignore[method-assign]
        facts = collector.stop()
        assert ("loop_callbacks_replaced_by_others", 1) in facts
        assert vars(asyncio.events.Handle)["_run"] is theirs
        assert asyncio.run(asyncio.sleep(0, "runs")) == "runs"
    finally:
        asyncio.events.Handle._run = original  # type: ignore[method-assign]
    collector.start()
    collector.stop()
    assert vars(asyncio.events.Handle)["_run"] is original


SWITCHES = ("mutex", "block", "capture", "pause")


def switched(choices: Sequence[str], yield_: Callable[[], object]) -> None:
    """Turn these on and off in turn, each as often as it comes; in the end all off."""
    running: list[Collector] = []

    def stop() -> None:
        for one in running:
            one.stop()
        running.clear()

    for number, choice in enumerate(choices):
        is_on = number % 2 == 0
        if choice == "mutex":
            contention.set_mutex_fraction(is_on)
        elif choice == "block":
            contention.set_block_rate(is_on)
        elif choice == "capture" and running:
            stop()
        elif choice == "capture":
            running = [Waits(), LoopCallbacks(), PoolJobs()]
            for one in running:
                one.start()
        yield_()
    contention.set_mutex_fraction(0)
    contention.set_block_rate(0)
    stop()


def test_all_is_as_it_was_whatever_was_switched_in_whatever_order() -> None:
    """Knobs before, within and after a capture: the very same objects, and no layers."""

    @given(st.lists(st.sampled_from(SWITCHES), max_size=12))
    def switch(choices: list[str]) -> None:
        before = hooks()

        switched(choices, lambda: None)

        assert all(a is b or a == b for a, b in zip(before, hooks(), strict=True))
        assert not REPLACED.are_any()

    switch()


def test_all_is_as_it_was_after_several_threads_have_switched() -> None:
    """One takes captures, two turn knobs, while pools and loops run on: 40 times."""
    before = hooks()
    drawn = random.Random(5)
    over = threading.Event()

    async def hand_over() -> None:
        lock = asyncio.Lock()
        await asyncio.gather(*(held(lock) for _ in range(3)))

    async def held(lock: asyncio.Lock) -> None:
        async with lock:
            await asyncio.sleep(0)

    def work() -> None:
        with ThreadPoolExecutor(2) as pool:
            while not over.is_set():
                pool.submit(int).result()
                asyncio.run(hand_over())

    def switch(seed: int, known: tuple[str, ...]) -> None:
        chooser = random.Random(seed)
        choices = [chooser.choice(known) for _ in range(30)]
        switched(choices, lambda: time.sleep(chooser.choice((0, 0, 0.0005))))

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(40):
            ways = (
                ("capture", "pause"),
                ("mutex", "block"),
                ("block", "mutex", "pause"),
            )
            threads = [
                threading.Thread(target=switch, args=(drawn.random(), known))
                for known in ways
            ]
            for one in threads:
                one.start()
            for one in threads:
                one.join()
            contention.set_mutex_fraction(0)
            contention.set_block_rate(0)
            assert hooks() == before
            assert not REPLACED.are_any()
    finally:
        over.set()
        worker.join()


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
