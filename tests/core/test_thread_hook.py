"""How we hear of threads that start: a method that other tools may save and restore."""

import subprocess
import sys
import textwrap

import pytest

SETUP = """
import threading
from stroboscope._core import engine

def ran():
    done = threading.Event()
    thread = threading.Thread(target=done.set, daemon=True)
    wait = thread._started.wait
    thread._started.wait = lambda *_: wait(5)  # one that dies at once never says so
    thread.start()
    return done.wait(5)
"""


def outcome(text: str) -> list[str]:
    """What a program prints, in a process of its own: broken threads cannot be undone."""
    done = subprocess.run(
        [sys.executable, "-c", SETUP + textwrap.dedent(text)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "read", ["threading.Thread._bootstrap_inner", "vars(threading.Thread)[name]"]
)
def test_who_saves_and_restores_the_method_breaks_no_thread(read: str) -> None:
    """Read through the class or from it: what is put back binds as it did."""
    found = outcome(f"""
        name = "_bootstrap_inner"
        window = engine.open_window(100)
        saved = {read}
        setattr(threading.Thread, name, lambda self: saved.__get__(self)())
        print(ran())
        setattr(threading.Thread, name, saved)
        print(ran())
        window.close()
        print(ran())
    """)

    assert found == ["True", "True", "True"]


def test_what_another_tool_puts_over_ours_stays_when_we_stop() -> None:
    """Not undone by us; and a thread still starts, now and after we begin again."""
    found = outcome("""
        before = threading.Thread._bootstrap_inner
        window = engine.open_window(100)
        under, seen = threading.Thread._bootstrap_inner, []
        def theirs(self):
            seen.append(self)
            under(self)
        threading.Thread._bootstrap_inner = theirs
        window.close()
        print(threading.Thread._bootstrap_inner is theirs, ran(), len(seen))
        window = engine.open_window(100)
        print(threading.Thread._bootstrap_inner is not theirs, ran(), len(seen))
        window.close()
        print(threading.Thread._bootstrap_inner is theirs, ran(), len(seen))
        threading.Thread._bootstrap_inner = before
        print(ran(), len(seen))
    """)

    assert found == [
        *("True", "True", "1"),
        *("True", "True", "2"),
        *("True", "True", "3"),
        *("True", "3"),
    ]


def test_the_method_is_there_only_while_something_samples() -> None:
    """Thread is as it was afterwards."""
    found = outcome("""
        before = vars(threading.Thread)["_bootstrap_inner"]
        window = engine.open_window(100)
        print(vars(threading.Thread)["_bootstrap_inner"] is before, ran())
        window.close()
        print(vars(threading.Thread)["_bootstrap_inner"] is before, ran())
    """)

    assert found == ["False", "True", "True", "True"]


def test_a_class_in_threads_place_is_no_hindrance() -> None:
    """As gevent's, which inherits the method: sampling begins, and all is put back."""
    found = outcome("""
        plain = threading.Thread
        before = vars(plain)["_bootstrap_inner"]
        threading.Thread = type("Thread", (plain,), {})
        window = engine.open_window(100)
        print(ran())
        window.close()
        print(vars(plain)["_bootstrap_inner"] is before)
        print("_bootstrap_inner" in vars(threading.Thread))
    """)

    assert found == ["True", "True", "False"]
