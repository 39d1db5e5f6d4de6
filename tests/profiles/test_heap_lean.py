"""At production rates most blocks are freed past us, and the profile is as true."""

import ctypes
import gc
import sys
import threading
from collections.abc import Iterator

import pytest
from heaping import HOLD, on_a_bare_thread, run

from stroboscope._core import _native
from stroboscope.profiles import heap

#: Source: SB_HEAP_LEAN_RATE in heap.h; hooks are lean from here on.
RATE = 16_384
SPACE, LIVE_SPACE = 1, 3
_C = ctypes.PyDLL(None)
_C.PyObject_Malloc.restype = ctypes.c_void_p
_C.PyObject_Malloc.argtypes = [ctypes.c_size_t]


@pytest.fixture(autouse=True)
def switched_off() -> Iterator[None]:
    _native.after_fork()  # no totals, whatever ran in this process before
    yield
    assert _native.heap_stop()  # none of our hooks is left, nor the one on RAW
    assert not _native.heap_info()["in_chain"]


def is_lean() -> bool:
    return bool(_native.heap_info()["lean"])


def bytes_in(name: str, value: int = LIVE_SPACE) -> int:
    """Bytes that a function asked for itself."""
    samples = heap.collect_heap().samples
    return sum(s.values[value] for s in samples if s.stack[0].function == name)


def test_fine_rates_and_raw_need_hooks_on_every_free() -> None:
    """Changed while it is on, use stays known: from lean to full, and back."""

    def lean_hold() -> list[bytes]:
        return [bytes(1000) for _ in range(20_000)]

    name = lean_hold.__qualname__ + ".<locals>.<listcomp>"
    name = name if sys.version_info < (3, 12) else lean_hold.__qualname__
    heap.set_rate(RATE)
    assert is_lean()
    kept = lean_hold()
    held = bytes_in(name)
    assert held == pytest.approx(20.66e6, rel=0.2)
    heap.set_rate(1)
    assert not is_lean()
    assert bytes_in(name) == held
    del kept[::2]
    assert bytes_in(name) == pytest.approx(held / 2, rel=0.2)
    heap.set_rate(RATE)
    assert is_lean()
    assert bytes_in(name) == pytest.approx(held / 2, rel=0.2)
    kept.clear()
    assert bytes_in(name) == 0

    heap.set_rate(0)
    heap.set_rate(RATE, with_raw=True)
    assert not is_lean()
    heap.set_rate(RATE)
    assert is_lean()
    assert _native.heap_info()["cut"] == 0


def test_hooks_are_lean_again_when_nothing_is_lost_by_it() -> None:
    """What a finer rate saw in pools would be in use for ever to lean hooks: they wait
    for it to go, and are there at the next reading."""

    def hold() -> list[bytes]:
        return [bytes(100) for _ in range(50_000)]

    name = hold.__qualname__ + ".<locals>.<listcomp>"
    name = name if sys.version_info < (3, 12) else hold.__qualname__
    heap.set_rate(512)
    kept = hold()
    heap.set_rate(RATE)
    held = bytes_in(name)
    assert held == pytest.approx(50_000 * 133, rel=0.1)
    assert not is_lean()
    del kept[::2]
    assert bytes_in(name) == pytest.approx(held / 2, rel=0.1)
    assert not is_lean()
    del kept
    large = [bytes(1_000_000) for _ in range(100)]
    here = "test_hooks_are_lean_again_when_nothing_is_lost_by_it"
    here += ".<locals>.<listcomp>" if sys.version_info < (3, 12) else ""

    assert bytes_in(here) == pytest.approx(1e8, rel=0.05)
    assert is_lean()
    assert bytes_in(name) == 0
    del large
    assert bytes_in(here) == 0
    assert _native.heap_info()["cut"] == 0


def test_what_is_resized_keeps_its_bytes() -> None:
    """A sample is moved out of its pool: lists that grow and shrink stay what they are."""

    numbers = list(range(1050))  # made here, for a number above 256 is a block itself

    def grow() -> list[list[int]]:
        grown: list[list[int]] = []
        for number in numbers[:1000] * 40:
            one: list[int] = []
            for other in numbers[number : number + number % 50 + 1]:
                one.append(other)  # noqa: PERF402 - to grow step by step
            del one[40:]
            grown.append(one)
        return grown

    heap.set_rate(RATE)
    assert is_lean()
    before = _native.heap_info()["samples"]
    kept = grow()
    assert _native.heap_info()["samples"] - before > 100
    for number, one in zip(numbers[:1000] * 40, kept, strict=True):
        assert one == numbers[number : number + number % 50 + 1][:40]
    live = sum(sys.getsizeof(one) - 16 for one in kept)  # but for the collector's head
    assert bytes_in(grow.__qualname__) == pytest.approx(live, rel=0.35)
    kept.clear()
    assert bytes_in(grow.__qualname__) < live / 20


def test_samples_outlive_our_hooks() -> None:
    """They are blocks of the allocator below: who frees them when we are gone is right."""
    heap.set_rate(RATE)
    kept = [bytes(100) for _ in range(200_000)]
    assert is_lean()
    assert _native.heap_info()["live"] > 500
    assert _native.heap_stop()
    del kept
    gc.collect()
    heap.set_rate(RATE)
    assert bytes_in("test_samples_outlive_our_hooks") == 0


def test_the_interpreters_own_count_of_blocks_stays_right() -> None:
    """`sys.getallocatedblocks` does not drift by one a sample."""

    def churn() -> None:
        for _ in range(20):
            kept = [bytearray(50) for _ in range(20_000)]
            del kept

    churn()
    gc.collect()
    before = sys.getallocatedblocks()
    heap.set_rate(RATE)
    churn()
    samples = _native.heap_info()["samples"]
    heap.set_rate(0)
    gc.collect()

    assert samples > 1000
    assert abs(sys.getallocatedblocks() - before) < samples / 4


@pytest.mark.skipif(
    sys.version_info >= (3, 12),
    reason="from 3.12 pymalloc itself needs the state of a thread",
)
def test_a_sample_freed_without_a_state_is_no_longer_in_use() -> None:
    """Any thread may free it: RAW's hook needs neither the GIL nor a state."""

    def ask() -> list[int]:
        return [_C.PyObject_Malloc(10_000) for _ in range(500)]

    heap.set_rate(RATE)
    kept = ask()
    name = ask.__qualname__
    live = sum(
        s.values[LIVE_SPACE]
        for s in heap.collect_heap().samples
        if any(name in frame.function for frame in s.stack)
    )
    assert live > 2_500_000
    for pointer in kept:
        on_a_bare_thread(_C.PyObject_Free, pointer)
    live = sum(
        s.values[LIVE_SPACE]
        for s in heap.collect_heap().samples
        if any(name in frame.function for frame in s.stack)
    )
    assert live < 200_000


@pytest.mark.parametrize("allocator", ["debug", "malloc", "malloc_debug", "pymalloc"])
def test_lean_only_over_an_allocator_seen_to_pass_on(allocator: str) -> None:
    """Where a block is not RAW's own in the end, every free is hooked."""
    out = run(
        HOLD
        + f"""
heap.set_rate({RATE})
print(_native.heap_info()["lean"])
kept = hold(); near(1); kept = None; near(0)
tracemalloc.start(); heap.set_rate(0); heap.set_rate({RATE})
kept = hold(); near(1); kept = None; near(0)
tracemalloc.stop(); live()
assert _native.heap_stop()
""",
        PYTHONMALLOC=allocator,
    )

    assert out == f"{int(allocator == 'pymalloc')}\n"


def test_a_thousand_changes_under_load_lose_no_byte() -> None:
    """Lean, full, RAW and off in any order while threads ask, resize and free."""
    stop = threading.Event()
    broken: list[object] = []

    def load(seed: int) -> None:
        kept: list[list[int]] = []
        while not stop.is_set():
            for number in range(seed, seed + 40):
                kept.append([number])
                kept[-1].extend(range(number))
                kept[-1].append(number)
            broken.extend(one for one in kept if one[0] != one[-1])
            del kept[::2]
            if len(kept) > 400:
                kept.clear()

    threads = [threading.Thread(target=load, args=(s,)) for s in (1, 20, 90)]
    for thread in threads:
        thread.start()
    for number in range(1000):
        rate = (RATE, 100, 0, 65_536, 3000)[number % 5]
        heap.set_rate(rate, with_raw=number % 7 == 0)
        if number % 100 == 0:
            heap.collect_heap()
    stop.set()
    for thread in threads:
        thread.join()
    assert _native.heap_stop()

    assert broken == []
    samples = heap.collect_heap().samples
    assert sum(s.values[LIVE_SPACE] for s in samples) == 0
    assert sum(s.values[SPACE] for s in samples) > 0
    assert _native.heap_info()["layers"] <= 8
