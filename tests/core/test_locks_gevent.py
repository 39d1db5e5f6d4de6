"""gevent's locks are gevent's, whoever patches first."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.native
BODY = """
import time, threading
from stroboscope._core.contention import contention
from stroboscope._core import _native
{patch_first}
contention.set_mutex_fraction(1)
contention.set_block_rate(1)
early = threading.Lock()
{patch_after}
import gevent
import gevent.lock
from gevent.monkey import is_module_patched
assert is_module_patched("threading")
turns = []
def work(lock, name):
    for _ in range(20):
        with lock:
            turns.append(name)
            gevent.sleep(0.0005)
for lock in (threading.Lock(), threading.RLock(), gevent.lock.RLock()):
    gevent.joinall([gevent.spawn(work, lock, n) for n in "abc"], raise_error=True)
with early:
    pass
assert len(turns) == 180, turns
assert any("gevent" in one for one in contention.unseen()), contention.unseen()
assert _native.contention_waiting() == 0
# Threads of the system still are what they were, and are seen.
pool = gevent.get_hub().threadpool
real = gevent.monkey.get_original("_thread", "allocate_lock")()
real.acquire()
def blocked():
    with real:
        pass
waiting = pool.spawn(blocked)
gevent.sleep(0.1)
real.release()
waiting.get()
from array import array
delays = array("q", contention.copy("mutex").column(3))
assert sum(delays) > 0.05e9, delays
contention.set_mutex_fraction(0)
contention.set_block_rate(0)
with threading.Lock(), threading.RLock(), early, real:
    print("fine")
"""
PATCH = "from gevent import monkey; monkey.patch_all()"


@pytest.mark.parametrize("order", ["first", "after"])
def test_gevent_and_watching_do_not_meet(order: str) -> None:
    """Patched before the switch or after it: greenlets wait as ever."""
    # Whoever patches first does so before anything else is imported.
    body = BODY.format(
        patch_first=PATCH if order == "first" else "",
        patch_after=PATCH if order == "after" else "",
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", body],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stdout.split() == ["fine"], done.stderr[-3000:]
