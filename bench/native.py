"""What native frames cost the application: before any capture of them, while there is a
plain profile after one, and in one; in turn, in one process.

`handler us` is the signal handler's own time a sample. `cpu` is the CPU a fixed piece of
work takes (of the thread that works: its signals are on it), as a ratio to no profile at
all: the median of pairs. Off is one load and one branch in the handler, and none of the
application's code.
"""

import json
import statistics
import threading
import time
import zlib

from stroboscope._core import engine
from stroboscope.profiles.native_frames import Unwinding

ROUNDS, HZ, DATA = 15, 100, bytes(range(256)) * 2000


def work():
    """Half a second, half of it in C."""
    began = time.thread_time_ns()
    for _ in range(10):
        zlib.compress(DATA, 6)
        sum(range(1_000_000))
    return time.thread_time_ns() - began


def counted():
    counters = engine.info().counters
    return counters["samples"], counters["handler_ns"]


def profiled(copies):
    """CPU of the work, and of the handler a sample, in a window."""
    window = engine.open_window(HZ, moments=1000 if copies else 0, copies=copies)
    unwinding, done = (Unwinding() if copies else None), threading.Event()

    def feed():
        while not done.wait(0.1):
            unwinding.feed(window.copies())

    feeding = threading.Thread(target=feed) if copies else None
    if feeding:
        feeding.start()
    before = counted()
    took = work()
    after = counted()
    if feeding:
        done.set()
        feeding.join()
    window.close()
    if unwinding:
        unwinding.close()
    return took, (after[1] - before[1]) / max(1, after[0] - before[0]) / 1000


def main():
    work()
    before_any = [profiled(False)[1] for _ in range(5)]
    found = {"off": [], "on": []}
    handler = {"off": [], "on": []}
    for _ in range(ROUNDS):
        for name in found:
            plain = work()
            took, us = profiled(name == "on")
            found[name].append(took / plain)
            handler[name].append(us)
    return {
        "handler us, before any": round(statistics.median(before_any), 2),
        **{
            f"handler us, {name}": round(statistics.median(all_), 2)
            for name, all_ in handler.items()
        },
        **{f"cpu, {name}": round(statistics.median(all_), 4) for name, all_ in found.items()},
    }


if __name__ == "__main__":
    print(json.dumps(main()))
