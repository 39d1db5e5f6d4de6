"""The heap profile estimates what was allocated and what lives, by stack and label."""

import asyncio
import functools
import gc
import math
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextvars import Context

import pytest
from heaping import HOLD, run

from stroboscope._core import LABELS, LabelCell, _native
from stroboscope.formats.profile import Profile
from stroboscope.labels import do, label_set
from stroboscope.profiles import heap

MIB = 1 << 20
#: From this rate on hooks leave `free` alone. Source: SB_HEAP_LEAN_RATE in heap.h.
LEAN = 16_384
OBJECTS, SPACE, LIVE_OBJECTS, LIVE_SPACE = range(4)


@pytest.fixture(autouse=True)
def switched_off() -> Iterator[None]:
    _native.after_fork()  # no totals, whatever ran in this process before
    yield
    heap.set_rate(0)
    assert not _native.heap_info()["in_chain"]


def by_label(profile: Profile, key: str, value: int) -> Counter[str]:
    """Of what `allocate` asked for."""
    found: Counter[str] = Counter()
    for sample in profile.samples:
        if sample.stack[0].function == "allocate":
            found[dict(sample.labels).get(key, "")] += sample.values[value]
    return found


def by_function(profile: Profile, value: int) -> Counter[str]:
    """Of what each function asked for itself."""
    found: Counter[str] = Counter()
    for sample in profile.samples:
        found[sample.stack[0].function] += sample.values[value]
    return found


def deviation(total: int, size: int, rate: int) -> float:
    """Standard deviation of the estimate of `total` bytes in blocks of `size`.

    A block is a sample with p = 1 - exp(-size / rate) and counts size / p: its variance
    is size squared times (1 - p) / p.
    """
    p = -math.expm1(-size / rate)
    return math.sqrt(total / size * size**2 * (1 - p) / p)


def allocate(total: int, size: int) -> list[bytes]:
    """Blocks of `size` bytes, `total` together, and a list of pointers allocated once."""
    kept = [b""] * (total // size)
    rest = size - 33  # bytes(n) asks for its head as well
    for i in numbers(len(kept)):
        kept[i] = bytes(rest)
    return kept


@functools.lru_cache(4)
def numbers(count: int) -> list[int]:
    """Made once, and not by `allocate`: a number above 256 is a block itself."""
    return list(range(count))


def with_list(total: int, size: int) -> float:
    return total + 8 * (total // size)


def test_every_byte_is_counted_at_rate_one() -> None:
    """At one sample a byte the profile is no estimate."""
    heap.set_rate(1)
    before = heap.collect_heap()
    kept = allocate(MIB, 1024)
    after = heap.collect_heap()
    heap.set_rate(0)

    for value in range(4):
        found = [by_function(one, value)["allocate"] for one in (before, after)]
        wanted = with_list(MIB, 1024) if value in (SPACE, LIVE_SPACE) else 1025
        assert found[1] - found[0] == pytest.approx(wanted, rel=0.01)
    del kept


@pytest.mark.parametrize("size", [48, 1024, 40_000, MIB])
def test_a_sampled_profile_is_the_whole_within_chance(size: int) -> None:
    """Blocks of any size, small or larger than the rate, weigh what they stand for."""
    total, rate = 96 * MIB, 64 * 1024
    heap.set_rate(rate)
    before = by_function(heap.collect_heap(), SPACE)["allocate"]
    kept = allocate(total, size)
    found = heap.collect_heap()

    allowed = 4 * deviation(total, size, rate) + 1.5 * rate  # the list
    live = by_function(found, LIVE_SPACE)["allocate"]
    wanted = with_list(total, size)
    assert abs(live - wanted) <= allowed
    assert abs(by_function(found, SPACE)["allocate"] - before - wanted) <= allowed
    count = by_function(found, LIVE_OBJECTS)["allocate"]
    pointers = rate / (8 * (total // size))  # what one sample of the list counts
    assert abs(count - total / size) <= allowed / size + pointers + 1
    del kept
    assert by_function(heap.collect_heap(), LIVE_SPACE)["allocate"] == 0


def test_totals_only_grow_and_use_falls() -> None:
    """What is freed leaves the use, not the totals."""
    heap.set_rate(4096)
    seen = []
    for _ in range(5):
        kept = allocate(8 * MIB, 1000)
        seen.append(heap.collect_heap())
        del kept
        seen.append(heap.collect_heap())

    totals = [by_function(one, SPACE)["allocate"] for one in seen]
    live = [by_function(one, LIVE_SPACE)["allocate"] for one in seen]
    assert totals == sorted(totals)
    assert all(one > 6 * MIB for one in live[::2])
    # From 3.14 a freed number may stay in a list of its type's, and be that one's sample.
    assert all(one <= 2 * 4096 for one in live[1::2])


def test_resizing_counts_the_size_it_has_now() -> None:
    """A list that grows and a buffer that shrinks are in use as large as they are."""
    heap.set_rate(1024)

    def grows_and_shrinks() -> tuple[list[None], bytearray]:
        growing: list[None] = []
        for _ in range(50_000):
            growing.extend([None] * 10)
        shrinking = bytearray(8 * MIB)
        del shrinking[MIB:]
        return growing, shrinking

    kept = grows_and_shrinks()
    wanted = sys.getsizeof(kept[0]) + sys.getsizeof(kept[1])
    live = sum(by_function(heap.collect_heap(), LIVE_SPACE)[n] for n in NAMES)

    assert live == pytest.approx(wanted, rel=0.02)
    del kept


NAMES = ("test_resizing_counts_the_size_it_has_now.<locals>.grows_and_shrinks",)


def holds(label: str, total: int, size: int, kept: list[bytes]) -> None:
    with do(endpoint=label):
        kept += allocate(total, size)


TRUTH = {"a": 64 * MIB, "b": 32 * MIB, "c": 96 * MIB}


def in_threads(kept: list[bytes]) -> None:
    threads = [
        threading.Thread(target=holds, args=(n, size, 2048, kept))
        for n, size in TRUTH.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def in_tasks(kept: list[bytes]) -> None:
    async def one(label: str, total: int) -> None:
        with do(endpoint=label):
            for _ in range(64):
                kept.extend(allocate(total // 64, 2048))
                await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(one(*item) for item in TRUTH.items()))

    asyncio.run(main())


def in_a_pool_thread(kept: list[bytes]) -> None:
    async def main() -> None:
        for label, total in TRUTH.items():
            await asyncio.to_thread(holds, label, total, 2048, kept)

    asyncio.run(main())


@pytest.mark.parametrize("way", [in_threads, in_tasks, in_a_pool_thread])
def test_what_each_label_holds_is_known(way: Callable[[list[bytes]], None]) -> None:
    """At 64 KiB, use by label within 4 sigma: labels of interleaved work never mix."""
    rate = 64 * 1024
    heap.set_rate(rate)
    kept: list[bytes] = []
    way(kept)
    found = by_label(heap.collect_heap(), "endpoint", LIVE_SPACE)

    for label, total in TRUTH.items():
        allowed = 4 * deviation(total, 2048, rate) + 0.01 * total
        assert abs(found[label] - total) <= allowed, (label, found)


def test_a_request_holds_under_the_labels_it_ends_with() -> None:
    """Late labels count for what was allocated before they were known."""
    heap.set_rate(4096)
    kept: list[bytes] = []

    def request(number: int) -> None:
        cell = LabelCell()
        cell.source = lambda: label_set({"endpoint": "late"})
        LABELS.set(cell)
        kept.extend(allocate(MIB, 1024))
        if number == 0:
            during.append(heap.collect_heap())
        cell.labels = label_set({"endpoint": "late", "status": "2xx"})
        cell.publish()

    during: list[Profile] = []
    before = by_label(heap.collect_heap(), "status", SPACE)["2xx"]
    for number in range(8):
        Context().run(request, number)
    after = by_label(heap.collect_heap(), "status", SPACE)["2xx"] - before

    assert by_label(during[0], "endpoint", SPACE)["late"] == before
    assert by_label(during[0], "endpoint", LIVE_SPACE)["late"] > 0.8 * MIB
    assert after == pytest.approx(8 * MIB, rel=0.2)
    kept.clear()
    gc.collect()
    assert by_label(heap.collect_heap(), "status", LIVE_SPACE)["2xx"] < 0.2 * MIB


def test_on_and_off_in_any_order_a_thousand_times() -> None:
    """What is made while on and freed while off, and the other way, harms nothing."""
    stop = threading.Event()

    def load() -> None:
        kept: list[object] = []
        while not stop.is_set():
            kept.append([bytes(100), {1: 2}, bytearray(5000)])
            if len(kept) > 500:
                del kept[::2]

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1000):
        heap.set_rate((1, 512, 65_536)[number % 3])
        if number % 250 == 0:
            heap.collect_heap()
        if number % 3:
            heap.set_rate(0)
    stop.set()
    for thread in threads:
        thread.join()
    heap.set_rate(0)

    off = heap.collect_heap()
    assert sum(sample.values[LIVE_SPACE] for sample in off.samples) == 0
    assert by_function(off, SPACE)[f"{load.__qualname__}"] > 0
    assert any("off now" in comment for comment in off.comments)
    # The same base beneath: layers are used again.
    assert _native.heap_info()["layers"] <= 8


def test_a_million_live_samples_stop_nobody() -> None:
    """At a million followed blocks, entering and leaving takes microseconds each."""
    heap.set_rate(1)
    holder: list[object] = [None] * 1_100_000
    for i in range(len(holder)):
        holder[i] = bytearray(1)  # two blocks each
    info = _native.heap_info()
    found = heap.collect_heap()
    heap.set_rate(0)
    del holder

    assert (1 << 20) - 1000 < info["live"] <= 1 << 20
    assert info["live_lost"] > 0
    assert any("too many at once" in comment for comment in found.comments)


@pytest.mark.parametrize("rate", [2000, LEAN])
def test_tracemalloc_started_later_and_stopped_first_or_last(rate: int) -> None:
    """A hook on top of ours: we count on, and stay as a pass-through when switched off."""
    run(
        HOLD
        + f"RATE = {rate}"
        + """
heap.set_rate(RATE)
tracemalloc.start()
kept = hold(); near(1)
heap.set_rate(0)
assert _native.heap_info()["in_chain"]
traced = tracemalloc.get_traced_memory()[0]
assert traced > 2e7, traced
del kept
assert tracemalloc.get_traced_memory()[0] < 1e6
heap.set_rate(RATE)
kept = hold(); near(1)
tracemalloc.stop()
near(1)
del kept
near(0)
heap.set_rate(0)
assert not _native.heap_info()["in_chain"]
"""
    )


@pytest.mark.parametrize("rate", [2000, LEAN])
def test_tracemalloc_started_first_takes_our_hooks_away_when_it_stops(
    rate: int,
) -> None:
    """It puts back what it found: we notice, begin the use anew and say so."""
    run(
        HOLD
        + f"RATE = {rate}"
        + """
tracemalloc.start()
heap.set_rate(RATE)
kept = hold(); near(1)
assert tracemalloc.get_traced_memory()[0] > 2e7
tracemalloc.stop()
del kept
near(0)
assert _native.heap_info()["cut"] == 1
assert any("took our hooks away" in c for c in heap.collect_heap().comments)
kept = hold(); near(1)
tracemalloc.start(); heap.set_rate(0); heap.set_rate(RATE); kept = hold()
tracemalloc.stop(); del kept
heap.set_rate(RATE)
near(0)
for _ in range(100):
    tracemalloc.start(); heap.set_rate(0); heap.set_rate(RATE); tracemalloc.stop()
kept = None; kept = hold(); live(); kept = None; kept = hold(); near(1)
heap.set_rate(0)
assert not _native.heap_info()["in_chain"]
assert _native.heap_info()["layers"] < 10
"""
    )


@pytest.mark.parametrize("allocator", ["debug", "malloc", "malloc_debug", "pymalloc"])
def test_any_allocator_beneath(allocator: str) -> None:
    """PYTHONMALLOC and development mode: the debug hooks find nothing wrong."""
    run(
        HOLD
        + """
heap.set_rate(2000)
kept = hold(); near(1)
for _ in range(20): heap.set_rate(0); heap.set_rate(500)
kept = None
kept = hold(); near(1)
heap.set_rate(0); heap.set_rate(16_384)
kept = None
kept = hold(); near(1)
kept = None; near(0)
""",
        "-X",
        "dev",
        PYTHONMALLOC=allocator,
    )


def test_a_process_that_ends_while_it_samples_ends_well() -> None:
    """Finalization, daemon threads and late frees pass through what is left of us."""
    run(
        HOLD
        + """
import threading, time
def forever():
    while True: hold()
heap.set_rate(100)
for _ in range(3): threading.Thread(target=forever, daemon=True).start()
time.sleep(0.3)
class Late:
    def __del__(self): hold()
late = [Late()]; late.append(late)
sys.late = late
"""
    )


def test_memory_hooks_are_not_there_until_switched_on() -> None:
    """Off costs nothing, for nothing is hooked; reading a profile hooks nothing."""
    out = run(
        HOLD
        + """
heap.set_rate(0); heap.collect_heap(); heap.set_rate(0)
print(_native.heap_info()["layers"], _native.heap_info()["in_chain"])
"""
    )

    assert out == "0 0\n"


def test_a_forked_child_is_off_and_can_be_switched_on() -> None:
    """The child has no hook and no total of its parent's."""
    heap.set_rate(1000)
    kept = allocate(MIB, 1000)
    child = os.fork()
    if child == 0:
        try:
            info, empty = _native.heap_info(), heap.collect_heap()
            good = not info["on"] and not info["in_chain"] and not empty.samples
            kept = []
            heap.set_rate(1000)
            kept = allocate(MIB, 1000)
            found = by_function(heap.collect_heap(), LIVE_SPACE)["allocate"]
            good &= abs(found - MIB) < 0.25 * MIB
            os._exit(0 if good else 1)
        except BaseException:
            os._exit(2)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    live = by_function(heap.collect_heap(), LIVE_SPACE)["allocate"]
    assert live == pytest.approx(MIB, rel=0.25)
    assert kept
