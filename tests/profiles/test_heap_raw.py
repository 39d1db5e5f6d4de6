"""RAW, the allocator that needs no GIL: an option, exact whoever asks for memory."""

import ctypes
import os
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from heaping import HOLD, on_a_bare_thread, run

from stroboscope._core import _native
from stroboscope.labels import do
from stroboscope.profiles import heap

SPACE, LIVE_SPACE = 1, 3
SIZE = 100_000
NOBODY = "[no python frame]"
#: The same functions, called with the GIL and without.
WITH, WITHOUT = ctypes.PyDLL(None), ctypes.CDLL(None)
for _library in (WITH, WITHOUT):
    _library.PyMem_RawMalloc.restype = ctypes.c_void_p
    _library.PyMem_RawMalloc.argtypes = [ctypes.c_size_t]
    _library.PyMem_RawRealloc.restype = ctypes.c_void_p
    _library.PyMem_RawRealloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    _library.PyMem_RawFree.restype = None
    _library.PyMem_RawFree.argtypes = [ctypes.c_void_p]


@pytest.fixture(autouse=True)
def switched_off() -> Iterator[None]:
    _native.after_fork()  # no totals, whatever ran in this process before
    yield
    heap.set_rate(0)
    assert not _native.heap_info()["in_chain"]


def by_function(value: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for sample in heap.collect_heap().samples:
        found[sample.stack[0].function] += sample.values[value]
    return found


def test_who_asks_with_the_gil_has_a_stack_and_labels() -> None:
    """And who asks without it is counted to the byte, under no stack."""

    def with_gil() -> int:
        return int(WITH.PyMem_RawMalloc(SIZE))

    heap.set_rate(1, with_raw=True)
    before = by_function(LIVE_SPACE)[NOBODY]
    with do(endpoint="/raw"):
        held = with_gil()
        lost = int(WITHOUT.PyMem_RawMalloc(SIZE))
        lost = int(WITHOUT.PyMem_RawRealloc(lost, 2 * SIZE))
    samples = heap.collect_heap().samples
    (one,) = (
        s
        for s in samples
        if s.stack[0].function == with_gil.__qualname__ and s.values[SPACE] >= SIZE
    )
    outside = by_function(LIVE_SPACE)[NOBODY] - before
    # Each frees the other's.
    WITHOUT.PyMem_RawFree(held)
    WITH.PyMem_RawFree(lost)

    assert dict(one.labels) == {"endpoint": "/raw"}
    assert outside == pytest.approx(2 * SIZE, abs=SIZE / 10)
    after = by_function(LIVE_SPACE)
    assert after[with_gil.__qualname__] < SIZE
    assert after[NOBODY] - before < SIZE


def test_a_thread_without_a_state_is_counted_to_the_byte() -> None:
    """Python knows nothing of it; what it frees is no longer in use."""
    heap.set_rate(1, with_raw=True)
    before = [by_function(value)[NOBODY] for value in (SPACE, LIVE_SPACE)]
    pointers = [on_a_bare_thread(WITH.PyMem_RawMalloc, SIZE) for _ in range(20)]
    held = [by_function(value)[NOBODY] for value in (SPACE, LIVE_SPACE)]
    for pointer in pointers:
        assert pointer
        ctypes.memset(pointer, 1, SIZE)
        on_a_bare_thread(WITH.PyMem_RawFree, pointer)
    freed = [by_function(value)[NOBODY] for value in (SPACE, LIVE_SPACE)]

    for value in range(2):
        assert held[value] - before[value] == pytest.approx(20 * SIZE, rel=0.01)
    assert freed[0] - before[0] == pytest.approx(20 * SIZE, rel=0.01)
    assert freed[1] - before[1] < SIZE


@pytest.mark.parametrize("size", [100, 512, 513, SIZE])
def test_what_other_domains_pass_on_counts_once(size: int) -> None:
    """pymalloc asks RAW for what is too large for its pools."""

    rest = size - 33  # bytes(n) asks for its head as well

    def allocate() -> list[bytes]:
        kept = [b""] * 100
        for i in range(100):
            kept[i] = bytes(rest)
        return kept

    heap.set_rate(1, with_raw=True)
    kept = allocate()
    for value in (SPACE, LIVE_SPACE):
        found = by_function(value)[allocate.__qualname__]
        assert found == pytest.approx(100 * size + 900, abs=900 + size)
    del kept
    assert by_function(LIVE_SPACE)[allocate.__qualname__] < 2000 + size


def test_raw_is_off_unless_asked_for() -> None:
    """And the same switch takes it away again."""

    def raw() -> int:
        return int(WITH.PyMem_RawMalloc(SIZE))

    heap.set_rate(1)
    WITH.PyMem_RawFree(raw())
    assert by_function(SPACE)[raw.__qualname__] < SIZE
    heap.set_rate(1, with_raw=True)
    WITH.PyMem_RawFree(raw())
    assert SIZE <= by_function(SPACE)[raw.__qualname__] < 2 * SIZE
    heap.set_rate(1)
    WITH.PyMem_RawFree(raw())
    assert by_function(SPACE)[raw.__qualname__] < 2 * SIZE


def test_on_and_off_a_thousand_times_while_others_ask_without_the_gil() -> None:
    """Every block stays whole. tracemalloc is not among them: to stop it while a thread
    waits in its hook for the GIL is a fault of CPython's own."""
    stop = threading.Event()
    broken: list[int] = []

    def load() -> None:
        held: list[int] = []
        while not stop.is_set():
            for number in range(50):
                pointer = int(WITHOUT.PyMem_RawMalloc(64 + number))
                ctypes.memset(pointer, number, 64)
                held.append(pointer)
            for number, pointer in enumerate(held):
                grown = int(WITHOUT.PyMem_RawRealloc(pointer, 2000))
                if ctypes.string_at(grown, 64) != bytes([number]) * 64:
                    broken.append(pointer)
                WITHOUT.PyMem_RawFree(grown)
            held.clear()

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(1000):
        heap.set_rate((1, 100, 20_000)[number % 3], with_raw=bool(number % 4))
        if number % 250 == 0:
            heap.collect_heap()
        if number % 3:
            heap.set_rate(0)
    stop.set()
    for thread in threads:
        thread.join()
    heap.set_rate(0)

    assert broken == []
    assert sum(s.values[LIVE_SPACE] for s in heap.collect_heap().samples) == 0
    assert not _native.heap_info()["in_chain"]


RAW = (
    HOLD
    + """
import ctypes, functools
set_rate = functools.partial(heap.set_rate, with_raw=True)
C = ctypes.PyDLL(None)
C.PyMem_RawMalloc.restype, C.PyMem_RawMalloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
C.PyMem_RawFree.restype, C.PyMem_RawFree.argtypes = None, [ctypes.c_void_p]
def hold():
    return [C.PyMem_RawMalloc(1030) for _ in range(20_000)]
def let_go(kept):
    for one in kept: C.PyMem_RawFree(one)
"""
)


def test_tracemalloc_before_and_after() -> None:
    """It counts as if we were not there, and we as if it were not there."""
    run(
        RAW
        + """
set_rate(2000); tracemalloc.start()
kept = hold(); near(1)
assert tracemalloc.get_traced_memory()[0] > 2e7
heap.set_rate(0); let_go(kept)
assert tracemalloc.get_traced_memory()[0] < 3e6
set_rate(2000); kept = hold(); near(1)
tracemalloc.stop(); near(1); let_go(kept); near(0)
heap.set_rate(0)
assert not _native.heap_info()["in_chain"]

tracemalloc.start(); set_rate(2000)
kept = hold(); near(1)
assert tracemalloc.get_traced_memory()[0] > 2e7
tracemalloc.stop(); let_go(kept); near(0)
assert _native.heap_info()["cut"] == 1
kept = hold(); near(1); let_go(kept); near(0)
heap.set_rate(0)
assert not _native.heap_info()["in_chain"]
"""
    )


@pytest.mark.parametrize("allocator", ["debug", "malloc", "malloc_debug", "pymalloc"])
def test_any_allocator_beneath(allocator: str) -> None:
    """The debug hooks find nothing wrong, and blocks count once."""
    run(
        RAW
        + """
set_rate(2000)
kept = hold(); near(1); let_go(kept); near(0)
for _ in range(20): heap.set_rate(0); set_rate(500)
def hold(): return [bytes(1000) for _ in range(20_000)]
kept = hold(); near(1)
kept = None; near(0)
""",
        "-X",
        "dev",
        PYTHONMALLOC=allocator,
    )


def test_a_process_that_ends_while_raw_is_sampled_ends_well() -> None:
    """Late frees of the interpreter's own pass through what is left of us."""
    run(
        RAW
        + """
import threading, time
def forever():
    while True: let_go(hold())
set_rate(100)
for _ in range(3): threading.Thread(target=forever, daemon=True).start()
time.sleep(0.2)
"""
    )


def test_a_forked_child_has_no_hook_on_raw() -> None:
    """And may be switched on by itself."""
    heap.set_rate(1, with_raw=True)
    kept = int(WITHOUT.PyMem_RawMalloc(SIZE))
    child = os.fork()
    if child == 0:
        try:
            good = (
                not _native.heap_info()["in_chain"] and not _native.heap_info()["raw"]
            )
            WITHOUT.PyMem_RawFree(kept)
            heap.set_rate(1, with_raw=True)
            kept = int(WITHOUT.PyMem_RawMalloc(SIZE))
            good &= SIZE <= by_function(LIVE_SPACE)[NOBODY] < 2 * SIZE
            os._exit(0 if good else 1)
        except BaseException:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    WITHOUT.PyMem_RawFree(kept)

    assert os.waitstatus_to_exitcode(status) == 0
