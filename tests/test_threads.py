"""What our threads wait with is the system's own, and no hub stands still for it."""

import ast
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import stroboscope
from stroboscope._threads import Lock

ROOT = Path(stroboscope.__file__).parent
#: What gevent replaces of what waits, or what names a greenlet where we mean a thread;
#: and loggers, whose handlers are the application's.
PATCHED = {
    "threading": "Barrier BoundedSemaphore Condition Event Lock RLock Semaphore Thread "
    "Timer current_thread enumerate get_ident local",
    "_thread": "RLock allocate allocate_lock get_ident start_new start_new_thread",
    "time": "sleep",
    "socket": "create_connection create_server fromfd getaddrinfo gethostbyname "
    "getnameinfo socket socketpair",
    "os": "fork forkpty popen posix_spawn spawnv system waitid waitpid",
    "queue": "",
    "select": "",
    "selectors": "",
    "subprocess": "",
    "logging": "getLogger",
}
#: Where it may stand all the same.
EXCEPTED = {
    "_greenlets.py": "has greenlets call a logger",
    "endpoints/knobset.py": "asks for levels among greenlets",
    "cli/serve.py": "a process of its own, without greenlets",
    "testing/canaries.py": "plays an application",
    "_http/wsgi.py": "a request's own thread, which gives way to others",
    "endpoints/surface.py": "the same",
    "_core/_pure_watching.py": "sockets that nobody waits at",
}
#: A thread has the lock for a while, and greenlets want it; then one greenlet has it
#: while it gives way to the others.
GREENLETS = """
from gevent import monkey
monkey.patch_all()
import gevent, gevent.hub
from stroboscope._threads import Lock, real, start_thread

gevent.get_hub()
made = []
begin = gevent.hub.Hub.__init__
gevent.hub.Hub.__init__ = lambda hub, *a, **k: (made.append(hub), begin(hub, *a, **k))[1]

lock, seen, is_taken = Lock(), [], []

def has_it():
    with lock:
        is_taken.append(True)
        real("sleep", "time")(0.1)
        seen.append("thread")

def wants_it(name, rests_s=0):
    with lock:
        gevent.sleep(rests_s)
        seen.append(name)

start_thread(has_it)
while not is_taken:
    gevent.sleep(0.001)
assert not lock.acquire(blocking=False)
killed = gevent.spawn(wants_it, "killed")
waiting = [gevent.spawn(wants_it, f"greenlet {at}", 0.05) for at in range(3)]
gevent.sleep(0.02)
assert not seen  # we run, and nobody else has it
killed.kill()
gevent.joinall(waiting, timeout=5, raise_error=True)

def wants_it_often():
    for _ in range(50):
        with lock:
            seen.append("again")

for _ in range(8):
    start_thread(wants_it_often)
busy = [gevent.spawn(wants_it, "last", 0.001) for _ in range(20)]
gevent.joinall(busy, timeout=5, raise_error=True)
for _ in range(500):
    if seen.count("again") == 400:
        break
    gevent.sleep(0.01)
assert seen[0] == "thread", seen
assert sorted(seen[1:4]) == ["greenlet 0", "greenlet 1", "greenlet 2"], seen
assert (seen.count("again"), seen.count("last"), made) == (400, 20, []), seen
print("fine")
"""


def test_one_thread_at_a_time_has_a_lock() -> None:
    """Whoever wants to wait waits; whoever does not is told; anybody gives it back."""
    lock, turns = Lock(), []

    def wants_it() -> None:
        with lock:
            turns.append("thread")

    assert lock.acquire()
    assert not lock.acquire(blocking=False)
    thread = threading.Thread(target=wants_it)
    thread.start()
    turns.append("here")
    lock.release()
    thread.join(5)

    assert turns == ["here", "thread"]
    with pytest.raises(RuntimeError):
        lock.release()


def test_a_hub_never_stands_still_for_a_lock_of_ours() -> None:
    """Greenlets wait for threads and for each other while others run; one that is
    killed meanwhile does not have it; no thread gets a hub."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GREENLETS],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stdout == "fine\n", done.stderr[-2000:]


def patched_names(tree: ast.AST) -> list[str]:
    """What of `PATCHED` is used; a class may be named, not called."""
    found = []
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [one.name for one in node.names if PATCHED.get(one.name) == ""]
        elif isinstance(node, ast.ImportFrom) and node.module in PATCHED:
            names = PATCHED[node.module].split()
            found += [one.name for one in node.names if not names or one.name in names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = PATCHED.get(node.value.id, "").split()
            if node.attr in names and (node.attr != "Thread" or id(node) in called):
                found.append(f"{node.value.id}.{node.attr}")
    return found


def test_nothing_of_ours_waits_with_what_gevent_patches() -> None:
    """`_threads`, `_greenlets.Log` and `engine.sleep` do; exceptions say why."""
    used = {
        str(file.relative_to(ROOT)): names
        for file in ROOT.rglob("*.py")
        if (names := patched_names(ast.parse(file.read_text())))
    }

    assert {name: used[name] for name in used.keys() - EXCEPTED.keys()} == {}
    assert used.keys() == EXCEPTED.keys()
    assert patched_names(ast.parse("import queue, threading\nthreading.Lock()")) == [
        "queue",
        "threading.Lock",
    ]
