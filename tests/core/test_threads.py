"""Our threads come and go without harm to the interpreter."""

import subprocess
import sys
import threading
import time

import pytest

from stroboscope._core import engine

#: While tracemalloc is switched on and off without a pause.
STARTING = """
import sys, threading, time, tracemalloc
from stroboscope._core import engine
until = time.monotonic() + 2
started = 0
def start():
    global started
    while time.monotonic() < until:
        for _ in range(20):
            engine.start_thread(lambda: None)
        engine.open_window(250).close()
        started += 20
        time.sleep(0.001)
threads = [threading.Thread(target=start) for _ in range(3)]
sys.setswitchinterval(1e-5)
for thread in threads: thread.start()
while time.monotonic() < until:
    tracemalloc.start()
    time.sleep(0.0005)
    tracemalloc.stop()
for thread in threads: thread.join()
print(started > 100)
"""


@pytest.mark.native
@pytest.mark.skipif(
    sys.version_info >= (3, 15),
    reason="from 3.15 any thread that ends frees its state after it let go of the GIL, "
    "and tracemalloc that ends then crashes the process, without us as well",
)
def test_they_start_while_tracemalloc_ends() -> None:
    """A thread whose state is made without the GIL then crashes the process."""
    done = subprocess.run(
        [sys.executable, "-c", STARTING], capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr[-2000:]


@pytest.mark.native
def test_they_are_never_seen_however_many_there_have_been() -> None:
    """One that stays, after hundreds that ended and beside others that come and go."""
    done, stays = threading.Event(), threading.Event()

    def burns_for_us() -> None:
        stays.set()
        while not done.is_set():
            sum(range(100))

    ended = threading.Semaphore(0)
    for _ in range(300):
        engine.start_thread(ended.release)
    for _ in range(300):
        assert ended.acquire(timeout=5)
    engine.start_thread(burns_for_us)
    assert stays.wait(5)
    engine.start_thread(ended.release)
    assert ended.acquire(timeout=5)
    window = engine.open_window(250)
    end = time.thread_time() + 0.1
    while time.thread_time() < end:
        sum(range(100))
    names = {name for _, name, *_ in window.close().frames}
    rest = engine.walk([], lambda task: None, lambda: None)
    done.set()

    assert any("however_many" in name for name in names)
    assert not any("burns_for_us" in name for name in names)
    assert "burns_for_us" not in repr(rest)
