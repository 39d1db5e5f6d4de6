"""Time off the CPU without the C engine: the same sums, with less sight."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from stroboscope._core import Engine
from stroboscope._core._pure import NOTE, PortableDriver
from stroboscope.formats.profile import Profile
from stroboscope.profiles import portable_wall, wall

SECONDS = 1.0


@pytest.fixture(autouse=True)
def portable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    made = Engine(PortableDriver(), "for this test")
    ticker = portable_wall.Ticker(made, wall.TASKS_PER_TICK)
    monkeypatch.setattr(wall, "engine", made)
    monkeypatch.setattr(wall, "_ticker", ticker)
    yield made
    end = time.monotonic() + 10
    while ticker._runs and time.monotonic() < end:
        time.sleep(0.01)
    assert not ticker._runs, "a ticker ends with the last window"
    assert made.info().counters["active"] == 0


def taken(engine: Engine, **options: object) -> Profile:
    """A profile that a thread of ours takes."""
    found: list[Profile] = []
    done = threading.Event()

    def take() -> None:
        found.append(wall.collect_wall(SECONDS, lambda _: None, **options))  # type: ignore[arg-type]
        done.set()

    engine.start_thread(take)
    assert done.wait(30)
    return found[0]


def seconds_by(profile: Profile, *functions: str) -> Counter[tuple[str, str]]:
    """By the function, of these, that is in the stack, and the state."""
    spent: Counter[tuple[str, str]] = Counter()
    for stack, (ns,), labels in profile.samples:
        names = {frame.function.rpartition(".")[2] for frame in stack}
        for function in names & set(functions):
            spent[function, dict(labels)["state"]] += ns / 1e9
    return spent


def test_each_thread_adds_up_to_the_time_that_passed(portable: Engine) -> None:
    """One that sleeps and one that burns: running and waiting together, by the clock."""
    stop = threading.Event()

    def sleeps() -> None:
        while not stop.is_set():
            time.sleep(0.01)

    def burns() -> None:
        while not stop.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=one) for one in (sleeps, burns)]
    for thread in threads:
        thread.start()
    try:
        profile = taken(portable)
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    spent = seconds_by(profile, "sleeps", "burns")
    elapsed = profile.duration_ns / 1e9
    assert spent["sleeps", "waiting"] == pytest.approx(elapsed, rel=0.25)
    assert spent["burns", "running"] > spent["sleeps", "running"]
    burnt = spent["burns", "running"] + spent["burns", "waiting"]
    assert burnt == pytest.approx(elapsed, rel=0.25)
    assert NOTE in profile.comments


def test_suspended_tasks_are_all_counted_though_few_are_looked_at(
    portable: Engine,
) -> None:
    """A hundred tasks of one kind are suspended a hundred times as long."""

    async def waits() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> Profile:
        tasks = [asyncio.create_task(waits()) for _ in range(100)]
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        profile = await asyncio.to_thread(taken, portable, loops=lambda: [loop])
        for task in tasks:
            task.cancel()
        return profile

    def sleeps() -> None:
        stop.wait()

    stop = threading.Event()
    sleeper = threading.Thread(target=sleeps)
    sleeper.start()
    try:
        profile = asyncio.run(main())
    finally:
        stop.set()
        sleeper.join()

    spent = seconds_by(profile, "waits", "sleeps")
    one = spent["sleeps", "waiting"]
    assert one > 0.5 * SECONDS
    assert spent["waits", "suspended"] == pytest.approx(100 * one, rel=0.05)
