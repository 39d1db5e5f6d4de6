"""Programs that hold known memory, and threads that Python knows nothing of."""

import ctypes
import os
import subprocess
import sys

#: With the GIL held throughout: nobody else is in Python's allocators meanwhile.
_PYTHON = ctypes.PyDLL(None)


def run(code: str, *options: str, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


HOLD = """
import gc, sys, tracemalloc
from stroboscope.profiles import heap
from stroboscope._core import _native
def hold(): return [bytes(1000) for _ in range(20_000)]
def live():
    found = heap.collect_heap()
    return sum(s.values[3] for s in found.samples
               if any(f.function == "hold" for f in s.stack)) / 20.6e6
def near(wanted):
    assert abs(live() - wanted) < 0.15, (live(), wanted)
"""


def on_a_bare_thread(
    function: object, argument: int, library: ctypes.CDLL = _PYTHON
) -> int | None:
    """What a C function returns on a thread that Python knows nothing of."""
    thread, result = ctypes.c_ulong(), ctypes.c_void_p()
    failed = library.pthread_create(
        ctypes.byref(thread), None, function, ctypes.c_void_p(argument)
    )
    assert not failed
    assert not library.pthread_join(thread, ctypes.byref(result))
    return result.value
