"""Against a model: whatever runs beside whatever, every begin has its end, in its task."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perfetto_sql import Processor

import stroboscope as strobe
from stroboscope._core import LABELS
from stroboscope.formats import perfetto
from stroboscope.formats.timeline import FAILED, OPEN_LEFT, OPEN_RIGHT, Span, Timeline
from stroboscope.tracing import recorder

#: Of each task's serial: how often each region ended how.
Model = dict[int, Counter[tuple[str, bool]]]


def serial() -> int:
    cell = LABELS.get()
    assert cell is not None
    return cell.task


class Requests:
    """Random requests that keep a record of what they do."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.model: Model = {}
        self.left: list[Iterator[None]] = []
        self._lock = threading.Lock()

    def note(self, task: int, name: str, failed: bool = False) -> None:
        with self._lock:
            self.model[task][name, failed] += 1

    async def request(self, steps: int) -> None:
        with strobe.task("request"):
            mine = serial()
            self.model[mine] = Counter()
            for _ in range(steps):
                await self.random.choice(self.STEPS)(self, mine)

    async def plain(self, mine: int) -> None:
        with strobe.region("plain"), strobe.region("inner"):
            self.note(mine, "plain")
            self.note(mine, "inner")

    async def waiting(self, mine: int) -> None:
        async with strobe.region("waiting"):
            self.note(mine, "waiting")
            await asyncio.sleep(self.random.choice((0, 0, 0.001)))

    async def children(self, mine: int) -> None:
        with strobe.region("around"):
            self.note(mine, "around")
            await asyncio.gather(
                self.waiting(mine), self.plain(mine), self.waiting(mine)
            )

    async def threads(self, mine: int) -> None:
        def work() -> None:
            assert serial() == mine
            with strobe.region("thread"):
                self.note(mine, "thread")

        await asyncio.to_thread(work)

    async def fails(self, mine: int) -> None:
        try:
            with strobe.region("fails"):
                self.note(mine, "fails", True)
                raise LookupError
        except LookupError:
            pass

    async def cancelled(self, mine: int) -> None:
        async def stuck() -> None:
            with strobe.region("cancelled"):
                self.note(mine, "cancelled", True)
                await asyncio.sleep(60)

        task = asyncio.create_task(stuck())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def timed_out(self, mine: int) -> None:
        try:
            async with asyncio.timeout(0.0005):
                with strobe.region("timed out"):
                    self.note(mine, "timed out", True)
                    await asyncio.sleep(60)
        except TimeoutError:
            pass

    async def leaves_a_generator(self, mine: int) -> None:
        def stream() -> Iterator[None]:
            with strobe.region("stream"):
                yield

        generator = stream()
        next(generator)
        self.note(mine, "stream", True)  # closing it raises in it
        self.left.append(generator)

    async def closes_a_generator(self, mine: int) -> None:
        if self.left:
            self.left.pop(self.random.randrange(len(self.left))).close()  # type: ignore[attr-defined]

    async def ends_elsewhere(self, mine: int) -> None:
        region = strobe.region("elsewhere")
        region.__enter__()
        self.note(mine, "elsewhere")
        await asyncio.to_thread(region.__exit__, None, None, None)

    async def drops(self, mine: int) -> None:
        strobe.region("dropped").__enter__()
        self.note(mine, "dropped")

    async def goes_on_behind(self, mine: int) -> None:
        async def later() -> None:
            await asyncio.sleep(0.002)
            with strobe.region("behind"):
                self.note(mine, "behind")

        self.background.append(asyncio.create_task(later()))

    STEPS = (
        *(plain, waiting, children, threads, fails, cancelled, timed_out),
        *(
            leaves_a_generator,
            closes_a_generator,
            ends_elsewhere,
            drops,
            goes_on_behind,
        ),
    )

    async def run(self, count: int, steps: int) -> None:
        self.background: list[asyncio.Task[None]] = []
        await asyncio.gather(*(self.request(steps) for _ in range(count)))
        await asyncio.gather(*self.background)
        for generator in self.left:
            generator.close()  # type: ignore[attr-defined]


def nest(spans: list[Span]) -> bool:
    """Whether spans, by begin, can be drawn on one track."""
    ends: list[int] = []
    for span in spans:
        while ends and ends[-1] <= span.begin_ns:
            ends.pop()
        if ends and ends[-1] < span.end_ns:
            return False
        ends.append(span.end_ns)
    return True


def check(line: Timeline, model: Model) -> None:
    """Each task has its own regions, all of them ended as they did, and they nest."""
    assert (line.torn, line.lost) == (0, 0)
    tasks = {task.serial: task for task in line.tasks()}
    assert set(tasks) == set(model)
    for number, task in tasks.items():
        spans = list(line.spans_of(task))
        ended = Counter((line.name(s.name), bool(s.flags & FAILED)) for s in spans)
        assert ended == model[number]
        assert not any(s.flags & (OPEN_LEFT | OPEN_RIGHT) for s in spans)
        assert all(s.task == number for s in spans)
        for track in range(task.tracks):
            assert nest([s for s in spans if s.track == track])


def run(seed: int, count: int, steps: int) -> tuple[Timeline, Model]:
    recorder.close()
    recorder.configure("shop", 16 << 20)
    recorder.set_flight(True)
    try:
        made = Requests(seed)
        asyncio.run(made.run(count, steps))
        block = recorder.snapshot()
        assert block is not None
        return Timeline.read(block), made.model
    finally:
        recorder.close()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 60), st.integers(1, 12))
def test_every_begin_has_its_end_in_its_own_task(
    seed: int, count: int, steps: int
) -> None:
    """Children, threads, cancellations, timeouts, exceptions, generators closed late."""
    check(*run(seed, count, steps))


@pytest.mark.slow
def test_a_thousand_requests_at_once(processor: Processor) -> None:
    """And Perfetto finds as many slices as there were regions, none out of place."""
    line, model = run(7, 1000, 10)

    check(line, model)
    processor.load(perfetto.encode(line))
    assert processor.problems() == []
    rows = processor.query(
        "select slice.name as name, count(*) as n from slice "
        "join process_track on slice.track_id = process_track.id "
        "where slice.name in ('plain', 'behind', 'stream', 'cancelled') group by 1"
    )
    wanted = Counter[str]()
    for regions in model.values():
        for (name, _), count in regions.items():
            wanted[name] += count
    assert {row["name"]: row["n"] for row in rows} == {
        name: wanted[name] for name in ("behind", "cancelled", "plain", "stream")
    }
