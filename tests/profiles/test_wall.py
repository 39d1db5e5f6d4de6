"""The wall profile says what the programs were built to do, by clocks of their own."""

import asyncio
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from contending import once_in_three

import stroboscope
from stroboscope._core import LABELS, LabelCell, _native
from stroboscope.formats.profile import Profile, Sample
from stroboscope.labels import label_set
from stroboscope.profiles.ledgers import to_columns
from stroboscope.profiles.wall import TASKS_PER_TICK, collect_wall

SECONDS = 2.0


#: The loops of `running`, which 3.14 has to be told.
LOOPS: list[asyncio.AbstractEventLoop] = []


def running(main: Coroutine[Any, Any, None]) -> None:
    async def noted() -> None:
        LOOPS[:] = [asyncio.get_running_loop()]
        await main

    asyncio.run(noted())


def collected(seconds: float = SECONDS) -> Profile:
    return collect_wall(
        seconds,
        lambda window: None,
        loops=lambda: [loop for loop in LOOPS if not loop.is_closed()],
    )


def beside(work: Callable[[], object], seconds: float = SECONDS) -> Profile:
    """A profile taken on another thread while `work` runs on this one."""
    taken: list[Profile] = []
    taking = threading.Thread(target=lambda: taken.append(collected(seconds)))
    taking.start()
    work()
    taking.join()
    return taken[0]


def seconds_by(profile: Profile, key: Callable[[Sample], Any]) -> Counter[Any]:
    total: Counter[Any] = Counter()
    for sample in profile.samples:
        total[key(sample)] += sample.values[0] / 1e9
    return total


def state(sample: Sample) -> str:
    return dict(sample.labels)["state"]


def functions(sample: Sample) -> set[str]:
    return {frame.function.rpartition(".")[2] for frame in sample.stack}


def burn_for(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(50))


def test_each_thread_adds_up_to_the_time_that_passed() -> None:
    """Threads that burn, wait, do both, and wait for the GIL: on and off the CPU
    together are the elapsed time, within 2 %."""
    done = threading.Event()

    def waits() -> None:
        done.wait()

    def burns() -> None:
        while not done.is_set():
            sum(range(1000))

    def alternates() -> None:
        while not done.is_set():
            burn_for(0.003)
            time.sleep(0.004)

    def naps() -> None:
        while not done.is_set():
            time.sleep(0.0007)

    bodies = [waits, burns, alternates, naps]
    threads = [threading.Thread(target=body) for body in bodies]
    for thread in threads:
        thread.start()
    profile = collected(3.0)
    done.set()
    for thread in threads:
        thread.join()

    for body in bodies:
        of_body = seconds_by(profile, lambda s, n=body.__name__: n in functions(s))[
            True
        ]
        assert of_body == pytest.approx(profile.duration_ns / 1e9, rel=0.02), body


@once_in_three
def test_threads_that_come_and_go_have_their_time() -> None:
    """Hundreds of threads that live for two or three ticks, as those of a server with
    one for each request: the sum of their lives."""
    lived: list[float] = []

    def brief() -> None:
        began = time.monotonic()
        time.sleep(0.025)
        lived.append(time.monotonic() - began)

    def one_after_another() -> None:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            thread = threading.Thread(target=brief)
            thread.start()
            thread.join()

    def work() -> None:
        time.sleep(0.1)
        starting = [threading.Thread(target=one_after_another) for _ in range(4)]
        for thread in starting:
            thread.start()
        for thread in starting:
            thread.join()

    profile = beside(work, SECONDS + 0.5)
    spent = seconds_by(profile, lambda s: "brief" in functions(s))[True]

    assert len(lived) > 50
    assert spent == pytest.approx(sum(lived), rel=0.06)


def test_a_waiting_thread_waits_where_it_stands_under_its_labels() -> None:
    """One second under a label at one place, half a second at another: each has its
    time and no other, and none of it is on the CPU."""

    slept: dict[str, float] = {}

    def first() -> None:
        began = time.monotonic()
        time.sleep(1.0)
        slept["a"] = time.monotonic() - began

    def second() -> None:
        began = time.monotonic()
        time.sleep(0.5)
        slept["b"] = time.monotonic() - began

    def work() -> None:
        with stroboscope.do(who="a"):
            first()
        with stroboscope.do(who="b"):
            second()

    profile = beside(work)
    spent = seconds_by(
        profile,
        lambda s: (
            bool(functions(s) & {"first"}),
            bool(functions(s) & {"second"}),
            dict(s.labels).get("who"),
            state(s),
        ),
    )

    a, b = spent[True, False, "a", "waiting"], spent[False, True, "b", "waiting"]
    assert a == pytest.approx(slept["a"], abs=0.04)
    assert b == pytest.approx(slept["b"], abs=0.04)
    assert spent[True, False, "b", "waiting"] == spent[False, True, "a", "waiting"] == 0


async def waits_a(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def waits_b(seconds: float) -> None:
    await asyncio.sleep(seconds)


def test_suspended_tasks_have_their_time_under_their_own_labels() -> None:
    """Tasks of two labels suspended at once: the sum of their times, by await chain;
    no task is ever under the other's label."""
    waited: Counter[str] = Counter()

    async def one(who: str, times: int) -> None:
        LABELS.set(LabelCell(label_set({"who": who})))
        for _ in range(times):
            began = time.monotonic()
            await (waits_a(0.15) if who == "a" else waits_b(0.05))
            waited[who] += time.monotonic() - began  # type: ignore[assignment]

    async def main() -> None:
        await asyncio.gather(*[one("a", 10) for _ in range(5)], one("b", 20))

    profile = beside(lambda: running(main()))
    spent = seconds_by(
        profile,
        lambda s: (
            state(s),
            dict(s.labels).get("who"),
            bool(functions(s) & {"waits_a"}),
            bool(functions(s) & {"waits_b"}),
        ),
    )

    assert spent["suspended", "a", True, False] == pytest.approx(waited["a"], rel=0.06)
    assert spent["suspended", "b", False, True] == pytest.approx(waited["b"], rel=0.08)
    assert spent["suspended", "a", False, True] == 0
    assert spent["suspended", "b", True, False] == 0


def test_totals_of_many_tasks_stay_true_though_few_are_looked_at() -> None:
    """A thousand tasks suspended throughout, of two kinds 9:1, beside short ones:
    8 are looked at in a tick, and the sums are the tasks' own."""
    short: Counter[str] = Counter()
    assert TASKS_PER_TICK == 8

    async def brief() -> None:
        began = time.monotonic()
        await asyncio.sleep(0.04)
        short["s"] += time.monotonic() - began  # type: ignore[assignment]

    async def main() -> None:
        long = [asyncio.create_task(waits_a(9)) for _ in range(900)]
        long += [asyncio.create_task(waits_b(9)) for _ in range(100)]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            await asyncio.gather(*(brief() for _ in range(100)))
        for task in long:
            task.cancel()

    profile = beside(lambda: running(main()))
    seconds = profile.duration_ns / 1e9
    spent = seconds_by(
        profile,
        lambda s: next(iter(functions(s) & {"waits_a", "waits_b", "brief"}), ""),
    )

    # 200 ticks at most, on a machine in use half as many: of 800 looks some 70 meet b.
    assert spent["waits_a"] == pytest.approx(900 * seconds, rel=0.06)
    assert spent["waits_b"] == pytest.approx(100 * seconds, rel=0.4)
    assert spent["brief"] == pytest.approx(short["s"], rel=0.3)


def test_two_windows_are_one_ticker_and_each_has_its_own_time() -> None:
    """The second is opened while the first runs and has no more than its own time."""

    def work() -> None:
        time.sleep(0.6)
        short = collected(0.5)
        slept = seconds_by(short, lambda s: "sleeps" in functions(s))[True]
        shorts.append(slept / (short.duration_ns / 1e9))

    def sleeps() -> None:
        time.sleep(SECONDS)

    shorts: list[float] = []
    sleeper = threading.Thread(target=sleeps)
    sleeper.start()
    long = beside(work, 1.6)
    sleeper.join()

    assert shorts == [pytest.approx(1.0, rel=0.06)]
    assert seconds_by(long, lambda s: "sleeps" in functions(s))[True] == pytest.approx(
        long.duration_ns / 1e9, rel=0.04
    )


def test_labels_that_are_only_known_at_the_end_are_there() -> None:
    """A task learns its labels after the time has passed, as a request its status."""
    waited: list[float] = []

    async def request() -> None:
        cell = LabelCell()
        LABELS.set(cell)
        began = time.monotonic()
        await waits_a(0.5)
        waited.append(time.monotonic() - began)
        cell.labels = label_set({"status": "5xx"})
        cell.publish()

    async def main() -> None:
        await asyncio.gather(request())

    profile = beside(lambda: running(main()), 1.0)
    spent = seconds_by(
        profile, lambda s: ("waits_a" in functions(s), dict(s.labels).get("status"))
    )

    assert spent[True, "5xx"] == pytest.approx(waited[0], abs=0.04)
    assert spent[True, None] == 0


def test_a_ticker_ends_with_the_last_window() -> None:
    """Nothing ticks when nobody asks."""
    collected(0.1)
    from stroboscope.profiles.wall import _ticker

    assert _ticker is not None
    time.sleep(0.1)
    assert not _ticker._runs
    assert not _ticker._open


@pytest.mark.native
def test_a_loop_does_not_wait_where_it_works() -> None:
    """Busy and at rest in turn, and let a tick in while busy: what it waited since the
    tick before it waited elsewhere."""

    def works() -> None:
        end = time.thread_time() + 0.004
        while time.thread_time() < end:
            len("x")

    def in_turn() -> None:
        until = time.monotonic() + SECONDS + 0.2
        while time.monotonic() < until:
            works()
            time.sleep(0.004)

    before = _native.turn_counts()[1]
    profile = beside(in_turn)
    assert _native.turn_counts()[1] > before + 20
    spent = seconds_by(profile, lambda s: ("works" in functions(s), state(s)))

    assert spent[True, "waiting"] < 0.15  # of one second


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_ticker_that_fails_is_begun_anew() -> None:
    """By the next window: who tells it the loops may fail at any time."""
    from stroboscope.profiles.wall import _ticker

    def loops() -> list[asyncio.AbstractEventLoop]:
        if threading.current_thread() is not threading.main_thread():
            raise LookupError
        return []

    handle = _ticker.open(loops)
    until = time.monotonic() + 5
    while _ticker._runs and time.monotonic() < until:
        time.sleep(0.01)
    assert not _ticker._runs
    _ticker.close(handle)

    profile = beside(lambda: time.sleep(0.4), 0.3)
    assert seconds_by(profile, lambda s: s.values and state(s))["waiting"] > 0.2


def test_a_few_tasks_after_many_have_their_own_time() -> None:
    """The set of tasks is nearly empty then."""

    async def many() -> None:
        await asyncio.gather(*(asyncio.sleep(0) for _ in range(10_000)))

    async def few() -> None:
        tasks = [asyncio.create_task(waits_a(9)) for _ in range(2)]
        tasks += [asyncio.create_task(waits_b(9)) for _ in range(5)]
        await asyncio.sleep(SECONDS + 0.1)
        for task in tasks:
            task.cancel()

    running(many())
    profile = beside(lambda: running(few()))
    seconds = profile.duration_ns / 1e9
    spent = seconds_by(
        profile, lambda s: next(iter(functions(s) & {"waits_a", "waits_b"}), "")
    )

    assert spent["waits_a"] == pytest.approx(2 * seconds, rel=0.05)
    assert spent["waits_b"] == pytest.approx(5 * seconds, rel=0.05)


@pytest.fixture
def window() -> Iterator[int]:
    handle = _native.wall_open()
    yield handle
    _native.wall_close(handle)


def nearly_empty(slots: int) -> set[Any]:
    """A set of one item that keeps the places of a quarter of `slots`."""
    left: set[Any] = set(range(slots // 4))
    for gone in range(1, slots // 4):
        left.discard(gone)
    return left


@pytest.mark.native
def test_a_table_too_big_to_be_walked_is_weighed_by_what_was(window: int) -> None:
    """Tasks in it have their own time, if by fewer looks."""
    tasks_in, ticks = nearly_empty(1 << 20), 600

    async def main() -> None:
        tasks_in.update(asyncio.create_task(waits_a(9)) for _ in range(7))
        await asyncio.sleep(0)
        _native.wall_tick([tasks_in])
        began = time.monotonic()
        for _ in range(ticks):
            await asyncio.sleep(0.002)
            _native.wall_tick([tasks_in])
        spent_s.append(time.monotonic() - began)

    spent_s: list[float] = []
    asyncio.run(main())
    rows = to_columns(_native.wall_copy(window), 3, ())
    suspended = sum(rows.values[1]) / 1e9
    assert suspended == pytest.approx(7 * spent_s[0], rel=0.5)


@pytest.mark.native
def test_a_table_that_was_big_is_not_walked_whole(window: int) -> None:
    """The set of a million tasks that are gone keeps its size until tasks are added."""
    left = nearly_empty(1 << 22)

    def cost(work: Callable[[], object]) -> float:
        began = time.thread_time()
        work()
        return time.thread_time() - began

    ticks = [cost(lambda: _native.wall_tick([left])) for _ in range(11)]
    whole = min(cost(lambda: list(left)) for _ in range(9))
    assert statistics.median(ticks) < whole / 5
