"""Allocations by those who are not ours to count: threads and interpreters beside us."""

import ctypes
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator

import pytest
from heaping import on_a_bare_thread

from stroboscope._core import _native
from stroboscope.profiles import heap

LIVE_SPACE = 3
SIZE = 100_000
#: With the GIL held throughout: nobody else is in Python's allocators meanwhile.
_C = ctypes.PyDLL(None)
_ALLOCATORS = {
    "raw": (_C.PyMem_RawMalloc, _C.PyMem_RawFree),
    "mem": (_C.PyMem_Malloc, _C.PyMem_Free),
    "object": (_C.PyObject_Malloc, _C.PyObject_Free),
}
for _malloc, _free in _ALLOCATORS.values():
    _malloc.restype, _malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    _free.restype, _free.argtypes = None, [ctypes.c_void_p]


@pytest.fixture(autouse=True)
def switched_off() -> Iterator[None]:
    _native.after_fork()  # no totals, whatever ran in this process before
    yield
    heap.set_rate(0)
    assert not _native.heap_info()["in_chain"]


def in_use() -> Counter[str]:
    """Bytes by the function that asked for them."""
    found: Counter[str] = Counter()
    for sample in heap.collect_heap().samples:
        found[sample.stack[0].function] += sample.values[LIVE_SPACE]
    return found


#: From 3.12 on the interpreter itself falls over where there is no state.
_STATELESS = ["raw"] if sys.version_info >= (3, 12) else [*_ALLOCATORS]


@pytest.mark.parametrize("domain", _STATELESS)
def test_a_thread_without_a_state_may_allocate_and_free(domain: str) -> None:
    """It gets its memory and loses it; it has no stack, so it is not counted."""
    malloc, free = _ALLOCATORS[domain]
    heap.set_rate(1)
    samples = _native.heap_info()["samples"]
    pointer = on_a_bare_thread(malloc, SIZE)
    assert pointer
    ctypes.memset(pointer, 1, SIZE)
    on_a_bare_thread(free, pointer)

    assert all(size < SIZE for size in in_use().values())
    assert _native.heap_info()["samples"] >= samples


@pytest.mark.skipif(
    sys.version_info >= (3, 12),
    reason="from 3.12 pymalloc itself needs the state of a thread",
)
@pytest.mark.parametrize("domain", ["mem", "object"])
def test_what_a_thread_without_a_state_frees_is_no_longer_in_use(domain: str) -> None:
    """Whoever asked for it: the free is settled by the next one with the GIL."""
    malloc, free = _ALLOCATORS[domain]

    def allocate() -> int:
        pointer = malloc(SIZE)
        assert isinstance(pointer, int)
        return pointer

    heap.set_rate(1)
    pointer = allocate()
    name = allocate.__qualname__
    assert in_use()[name] >= SIZE
    on_a_bare_thread(free, pointer)

    assert in_use()[name] < SIZE


def test_a_foreign_thread_that_takes_the_gil_is_counted() -> None:
    """From its first Python frame on, as any thread."""
    kept: list[bytearray] = []

    def foreign(_: object) -> None:
        kept.append(bytearray(SIZE))

    callback = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(foreign)
    heap.set_rate(1)
    on_a_bare_thread(callback, 0, ctypes.CDLL(None))  # which lets go of the GIL

    assert len(kept) == 1
    assert in_use()[foreign.__qualname__] >= SIZE


INTERPRETERS = """
import importlib, sys, threading
interpreters = importlib.import_module(
    "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
)
from stroboscope.profiles import heap
from stroboscope._core import _native

CODE = '''
import threading
kept = []
def work():
    for n in range(3000):
        kept.append([bytearray(n % 700) for _ in range(3)])
        if n % 3 == 2:
            del kept[:]
threads = [threading.Thread(target=work) for _ in range(2)]
for one in threads: one.start()
work()
for one in threads: one.join()
'''

def beside():
    one = interpreters.create()
    try:
        failed = interpreters.run_string(one, CODE)
        assert failed is None, failed
    finally:
        interpreters.destroy(one)

def ours():
    kept = []
    for n in range(20000):
        kept.append([bytearray(n % 700)])
        if n % 100 == 0:
            heap.collect_heap()
            kept.clear()

heap.set_rate(1)
threads = [threading.Thread(target=beside) for _ in range(2)]
for one in threads: one.start()
ours()
for one in threads: one.join()
names = {frame.function for s in heap.collect_heap().samples for frame in s.stack}
assert "ours" in names, names
assert "work" not in names, "another interpreter's code was counted"
heap.set_rate(0)
assert not _native.heap_info()["in_chain"]
beside()
print("well")
"""


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="before 3.12 no interpreter has a GIL of its own"
)
def test_interpreters_beside_us_are_left_alone() -> None:
    """Their threads hold another GIL: what they allocate is theirs, and counts nowhere."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(INTERPRETERS)],
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["well"]
