"""Our threads come and go without harm to the interpreter."""

import subprocess
import sys

import pytest

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
def test_they_start_while_tracemalloc_ends() -> None:
    """A thread whose state is made without the GIL then crashes the process."""
    done = subprocess.run(
        [sys.executable, "-c", STARTING], capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr[-2000:]
