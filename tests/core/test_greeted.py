"""Threads that a server made behind the interpreter's back, as uWSGI does."""

import subprocess
import sys

import pytest

#: Forks without CPython's hooks, or blocks all signals of a thread; then burns CPU on
#: the thread that a server would serve requests on.
_SCRIPT = """
import ctypes, os, signal, sys, threading, time
from stroboscope._core import engine
from stroboscope.profiles.cpu import collect_cpu

def burn_on_purpose(found):
    ends_s = time.monotonic() + 10
    while not found and time.monotonic() < ends_s:
        sum(range(1000))

def serve(how):
    if how == "blocked":
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    if sys.argv[2] == "greeted":
        engine.greet_thread(os.getpid())
        engine.greet_thread(os.getpid())
    found = []
    engine.start_thread(lambda: found.append(collect_cpu(0.5, lambda window: None)))
    burn_on_purpose(found)
    names = [f.function for s in found[0].samples for f in s.stack]
    print("burn_on_purpose" in names, flush=True)

if sys.argv[1] == "forked":
    child = ctypes.PyDLL(None).fork()
    if not child:
        serve("forked")
        os._exit(0)
    os.waitpid(child, 0)
else:
    one = threading.Thread(target=serve, args=("blocked",))
    one.start()
    one.join()
"""


@pytest.mark.native
@pytest.mark.parametrize("how", ["forked", "blocked"])
@pytest.mark.parametrize("greeted", ["greeted", "not greeted"])
def test_a_thread_of_a_server_is_sampled(how: str, greeted: str) -> None:
    """Forked without the interpreter's hooks, or with every signal blocked: from its
    first request on, for that greets it. Without that nothing of it is seen."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, how, greeted],
        capture_output=True,
        text=True,
        timeout=20,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{greeted == 'greeted'}\n", done.stderr


#: A SIGPROF waits that nobody would handle, as every thread blocks it.
_WAITING = """
import os, signal
from stroboscope._core import engine
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.kill(os.getpid(), signal.SIGPROF)
engine.greet_thread(os.getpid())
print("alive")
"""


@pytest.mark.native
def test_a_signal_that_waits_is_not_let_in() -> None:
    """It would end the process: rather no sample than that."""
    done = subprocess.run(
        [sys.executable, "-c", _WAITING], capture_output=True, text=True, timeout=20
    )

    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
