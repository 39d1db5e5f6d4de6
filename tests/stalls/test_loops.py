"""A loop that stands still is seen, and whose fault it is."""

import asyncio
import gc
import logging
import threading
import time

import pytest
from stalling import GUILTY_LINE, STALL_S, block, over, request, stall, watching

from stroboscope.stalls import Stall, Watch
from stroboscope.stalls.telling import LINE_EVERY_S


async def stalled_once(watch: Watch, in_flight: int = 50) -> list[Stall]:
    """Fifty requests wait, one of them blocks for 300 ms; what the book says."""
    watch.add_loop(asyncio.get_running_loop())
    others = [
        asyncio.ensure_future(request("/waits", lambda: asyncio.sleep(0.6)))
        for _ in range(in_flight)
    ]
    await asyncio.sleep(0.15)
    await request("/blocks", lambda: stall(STALL_S), tenant="acme")
    await asyncio.gather(*others)
    return await over(watch)


def check(found: list[Stall]) -> None:
    (one,) = [stall for stall in found if stall.cause == "code"]
    assert dict(one.labels)["endpoint"] == "/blocks"
    assert dict(one.labels)["tenant"] == "acme"
    assert one.frame is not None
    assert one.frame.function == "block"
    assert one.frame.line == GUILTY_LINE
    assert one.seen >= 2
    assert one.duration_ms >= 0.4 * STALL_S * 1000


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(3))
def test_a_stall_is_recorded_once_with_its_endpoint_and_line(turn: int) -> None:
    """Of 300 ms, with 50 requests in flight; `make stalls` does it a hundred times."""
    with watching() as watch:
        check(asyncio.run(stalled_once(watch)))


def test_a_stall_on_uvloop_is_seen_the_same_way() -> None:
    """Its C loop has no frames of its own."""
    uvloop = pytest.importorskip("uvloop", reason="uvloop is not installed")

    with watching() as watch:
        check(uvloop.run(stalled_once(watch)))


def test_an_idle_loop_is_left_alone() -> None:
    """It is woken about once a second, not at every look."""

    async def idle(watch: Watch) -> int:
        watch.add_loop(asyncio.get_running_loop())
        await asyncio.sleep(0.3)
        (heart,) = [kept() for kept in watch._loops.values() if kept is not None]
        assert heart is not None
        before = heart.beats
        await asyncio.sleep(3)
        return heart.beats - before

    with watching() as watch:
        assert 2 <= asyncio.run(idle(watch)) <= 6
        assert watch.book.stalls() == []


def test_a_busy_loop_that_gives_way_is_no_stall() -> None:
    """Many short callbacks are no stall, however long they go on; what the machine
    itself made late, the loop has seen as well."""

    async def busy(watch: Watch) -> int:
        watch.add_loop(asyncio.get_running_loop())
        last = began = time.monotonic()
        gaps = 0
        while last < began + 1:
            sum(range(1000))
            await asyncio.sleep(0)
            now = time.monotonic()
            gaps += now - last > 0.09
            last = now
        return gaps

    with watching() as watch:
        gaps = asyncio.run(busy(watch))

        assert len(watch.book.stalls()) <= gaps


def test_a_busy_loop_in_python_is_seen_where_it_turns() -> None:
    """`while` in a helper: the place seen most is inside, whoever it calls."""

    def turns() -> None:
        end = time.monotonic() + STALL_S
        while time.monotonic() < end:
            sum(range(100))

    async def work() -> None:
        turns()

    async def main(watch: Watch) -> list[Stall]:
        watch.add_loop(asyncio.get_running_loop())
        await asyncio.sleep(0.05)
        await request("/turns", work)
        return await over(watch)

    with watching() as watch:
        found = asyncio.run(main(watch))

    (one,) = [stall for stall in found if stall.cause == "code"]
    assert one.frame is not None
    assert one.frame.function.endswith("turns")
    assert dict(one.labels)["endpoint"] == "/turns"


def test_a_stall_that_goes_on_is_shown() -> None:
    """Asked in the middle, the book says who blocks, so far."""
    shown: list[Stall] = []

    async def main(watch: Watch) -> None:
        watch.add_loop(asyncio.get_running_loop())
        await asyncio.sleep(0.05)
        asker = threading.Timer(0.4, lambda: shown.extend(watch.book.stalls()))
        asker.start()
        await request("/blocks", lambda: stall(0.6))
        asker.join()

    with watching() as watch:
        asyncio.run(main(watch))

    (one,) = shown
    assert not one.is_over
    assert dict(one.labels)["endpoint"] == "/blocks"


def test_a_pause_of_the_collector_is_nobodys_stall() -> None:
    """A loop that is late because garbage was collected is counted, not listed."""

    class Slow:
        def __del__(self) -> None:
            block(STALL_S)

    async def collect() -> None:
        one = Slow()
        one.itself = one  # type: ignore[attr-defined]
        del one
        gc.collect()

    async def main(watch: Watch) -> None:
        watch.add_loop(asyncio.get_running_loop())
        await asyncio.sleep(0.05)
        await request("/collects", collect)
        await asyncio.sleep(0.1)

    with watching() as watch:
        asyncio.run(main(watch))

        assert watch.book.counted["loop", "gc"] == 1
        assert [s for s in watch.book.stalls() if s.cause == "code"] == []


def test_a_loop_that_ended_or_waits_for_its_turn_is_not_late() -> None:
    """Between two runs of a loop, and after its end, nobody expects a beat."""
    with watching() as watch:
        loop = asyncio.new_event_loop()
        watch.add_loop(loop)
        loop.run_until_complete(asyncio.sleep(0.2))
        time.sleep(0.5)
        loop.run_until_complete(asyncio.sleep(0.2))
        loop.close()
        time.sleep(0.4)

        assert watch.book.stalls() == []


def test_a_loop_goes_away_whole() -> None:
    """Its heart and its descriptor are gone with it; hundreds may come and go."""

    async def main(watch: Watch) -> None:
        watch.add_loop(asyncio.get_running_loop())
        await asyncio.sleep(0.01)

    with watching() as watch:
        for _ in range(100):
            asyncio.run(main(watch))
        gc.collect()

        assert len(watch._loops) <= 1
        assert watch.failure == ""


def test_lines_are_rare(caplog: pytest.LogCaptureFixture) -> None:
    """Two stalls in a row leave one line, which names the endpoint and the place."""

    async def main(watch: Watch) -> None:
        watch.add_loop(asyncio.get_running_loop())
        await asyncio.sleep(0.05)
        for count in (1, 2):
            await request("/blocks", lambda: stall(0.25))
            await over(watch, count)

    with watching() as watch, caplog.at_level(logging.WARNING, "stroboscope"):
        asyncio.run(main(watch))
        time.sleep(0.1)

    lines = [one.getMessage() for one in caplog.records]
    assert LINE_EVERY_S > 1
    assert len(lines) == 1, lines
    assert "endpoint=/blocks" in lines[0]
    assert f"stalling.py:{GUILTY_LINE}" in lines[0]


def test_a_log_handler_that_blocks_holds_up_no_watch() -> None:
    """The stalled thread may hold its lock: looks go on, the book is kept."""
    entered, held = threading.Event(), threading.Event()

    class Stuck(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            entered.set()
            held.wait(60)

    def blocked(watch: Watch) -> int:
        return sum(
            one.is_over and one.frame is not None and one.frame.function == "block"
            for one in watch.book.stalls()
        )

    async def stall_until(watch: Watch, count: int) -> None:
        """On a busy machine some are over before the watch gets to look."""
        for _ in range(15):
            await request("/blocks", lambda: stall(0.25))
            for _ in range(30):
                if blocked(watch) >= count:
                    return
                await asyncio.sleep(0.01)

    async def main(watch: Watch) -> int:
        watch.add_loop(asyncio.get_running_loop())
        await asyncio.sleep(0.05)
        await stall_until(watch, 1)
        assert await asyncio.to_thread(entered.wait, 10)
        before = blocked(watch)
        await stall_until(watch, before + 1)
        return blocked(watch) - before

    handler = Stuck()
    logging.getLogger("stroboscope").addHandler(handler)
    try:
        with watching() as watch:
            assert asyncio.run(main(watch)) >= 1
    finally:
        held.set()
        logging.getLogger("stroboscope").removeHandler(handler)


def test_a_threshold_of_nothing_watches_nothing_until_it_is_raised() -> None:
    """The knob at 0 ends the watch's threads; above, the same loops are watched."""

    async def main(watch: Watch) -> tuple[int, int]:
        watch.add_loop(asyncio.get_running_loop())
        await asyncio.sleep(0.05)
        watch.begin(0, 0)
        block(0.3)
        await asyncio.sleep(0.05)
        off = len(watch.book.stalls())
        watch.begin(100, 0)
        await asyncio.sleep(0.05)
        await request("/blocks", lambda: stall(STALL_S))
        return off, len([s for s in await over(watch) if s.cause == "code"])

    with watching() as watch:
        assert asyncio.run(main(watch)) == (0, 1)


def test_a_loop_may_be_named_before_the_watch_begins() -> None:
    """As `stroboscope.watch_loop` does, from any thread; it is watched from then on."""
    watch = Watch()

    async def main() -> list[Stall]:
        watch.add_loop(asyncio.get_running_loop())
        watch.begin(100, 0)
        await asyncio.sleep(0.05)
        await request("/blocks", lambda: stall(STALL_S))
        return await over(watch)

    try:
        found = asyncio.run(main())
    finally:
        watch.stop()

    assert len([one for one in found if one.cause == "code"]) == 1
