"""What is the application's is called by its greenlets, late where they stand still."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from stroboscope._greenlets import Post, among_greenlets

#: Threads of ours log to a handler that gives way, as greenlets do all the time.
LOGGING = """
from gevent import monkey
monkey.patch_all()
import gevent, gevent.hub, logging, threading, time
from stroboscope._core import engine
from stroboscope._greenlets import Log, among_greenlets

class GivesWay(logging.Handler):
    def emit(self, record):
        time.sleep(0.0001)
        seen.append(record.getMessage())

made, seen, ended = [], [], []
gevent.get_hub()
begin = gevent.hub.Hub.__init__
gevent.hub.Hub.__init__ = lambda hub, *a, **k: (made.append(hub), begin(hub, *a, **k))[1]
logging.getLogger().addHandler(GivesWay())
log, theirs = Log("stroboscope"), logging.getLogger("app")

def ours(number):
    for at in range(20):
        log.error("ours %d %d", number, at)
        engine.sleep(0.001)
    ended.append(among_greenlets(lambda: threading.get_ident() != id(gevent.get_hub())))

def chatters():
    while True:
        theirs.error("theirs")
        gevent.sleep(0)

busy = [gevent.spawn(chatters) for _ in range(5)]
for number in range(8):
    engine.start_thread(lambda number=number: ours(number))

def said(number):
    return [one for one in seen if one.startswith(f"ours {number} ")]

for _ in range(1000):
    if len(ended) == 8 and sum(one.startswith("ours") for one in seen) == 160:
        break
    gevent.sleep(0.01)
assert ended == [True] * 8, ended
for number in range(8):
    assert said(number) == [f"ours {number} {at}" for at in range(20)], said(number)
assert made == []
gevent.killall(busy)

# A hub that stands still for longer than we wait.
late = []
engine.start_thread(lambda: late.append(among_greenlets(time.monotonic)))
began = time.monotonic()
while time.monotonic() < began + 1.5:
    pass
assert late and late[0] < began + 1.5, late
print("fine")
"""


def test_greenlets_log_for_threads_and_nobody_waits_for_ever() -> None:
    """Each line of ours is written, in order, though others write all the time; no
    thread gets a hub; where the hub stands still, ours says it after a while."""
    command = [sys.executable, "-W", "ignore", "-c", LOGGING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert done.stdout == "fine\n", done.stderr[-2000:]


def test_without_greenlets_it_is_a_plain_call() -> None:
    """Also in what it raises."""
    done: list[str] = []

    def fails() -> None:
        done.append("failed")
        raise ZeroDivisionError

    Post().send(lambda: done.append("sent"))
    calls: list[Callable[[Callable[[], None]], object]] = [Post().send, among_greenlets]
    for call in calls:
        with pytest.raises(ZeroDivisionError):
            call(fails)

    assert done == ["sent", "failed", "failed"]


def test_what_waits_has_a_cap_and_goes_in_its_order() -> None:
    """What is beyond it, or raises, is counted; a thread is there only while one waits."""
    post, done = Post(cap=2), []
    threads: list[Callable[[], object]] = []
    post.start_thread = threads.append
    for number in range(4):
        post.queue(lambda number=number: done.append(1 // number))  # type: ignore[misc]

    (run,) = threads
    run()
    post.queue(lambda: done.append(2))

    assert done == [1]
    assert post.dropped == 2 + 1
    assert len(threads) == 2


def test_what_waited_is_its_parents_after_a_fork() -> None:
    """A child calls only what it was given itself."""
    code = """
import os, sys
from stroboscope._greenlets import Post
post, threads, done = Post(), [], []
post.start_thread = threads.append
post.queue(lambda: done.append("parent's"))
with post._lock:
    child = os.fork()
if child == 0:
    post.queue(lambda: done.append("child's"))
    threads[-1]()
    os._exit(done != ["child's"])
sys.exit(os.waitpid(child, 0)[1])
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
