"""The native engine tells the truth about CPU time and labels."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from stroboscope._core import LABELS, Capture, LabelCell, _native, engine
from stroboscope.errors import WindowsExhausted


def burn_a(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(200))


def burn_b(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(200))


BURN: dict[str, Callable[[float], None]] = {"a": burn_a, "b": burn_b}


def by_function_and_label(capture: Capture) -> Counter[tuple[str, str]]:
    """Nanoseconds per (burning function, label)."""
    total: Counter[tuple[str, str]] = Counter()
    for stack, serial, _, ns in capture.rows:
        names = [capture.frames[i][1] for i in capture.stacks[stack] if i >= 0]
        burning = [name[-1] for name in names if name in ("burn_a", "burn_b")]
        chain = capture.chains.get(serial, ())
        label = str(chain[-1]) if chain else ""
        if burning:
            total[burning[0], label] += ns
    return total


async def labelled(label: str, seconds: float, rounds: int) -> float:
    """CPU seconds burnt, in bursts of random length: even ones may keep step with the
    kernel's tick, and then the tick sees one request more often than the other."""
    cell = LabelCell(label)
    LABELS.set(cell)
    burnt = 0.0
    for _ in range(rounds):
        began = time.thread_time()
        BURN[label](seconds / rounds * random.uniform(0.2, 1.8))
        burnt += time.thread_time() - began
        await asyncio.sleep(0)
    cell.publish()
    return burnt


def test_interleaved_tasks_keep_their_own_label() -> None:
    """Two tasks on one loop: no sample's label contradicts its stack."""

    async def main() -> list[float]:
        return await asyncio.gather(labelled("a", 1.8, 400), labelled("b", 0.6, 400))

    window = engine.open_window()
    a, b = asyncio.run(main())
    total = by_function_and_label(window.close())

    assert {key for key in total if key[0] != key[1]} == set()
    share = total["a", "a"] / (total["a", "a"] + total["b", "b"])
    assert share == pytest.approx(a / (a + b), abs=0.13)


def test_sample_count_is_cpu_time_times_rate() -> None:
    """A thread that burns one second at 100 Hz gives one second of samples."""
    window = engine.open_window(100)
    burn_a(1.0)

    capture = window.close()

    total_ns = sum(ns for _, _, _, ns in capture.rows)
    assert total_ns == pytest.approx(1e9, rel=0.1)
    assert capture.period_ns == 10_000_000
    assert capture.duration_ns >= 1e9


def test_a_window_may_begin_later() -> None:
    """What ran before that moment is not in it; waiting begins then, too."""
    start_ns = time.monotonic_ns() + 400_000_000
    window = engine.open_window(250, start_ns=start_ns)
    while time.monotonic_ns() < start_ns - 100_000_000:
        burn_a(0.01)
    while time.monotonic_ns() < start_ns:
        time.sleep(0.01)
    burn_b(0.2)
    assert window.wait(0.1)
    waited_ns = time.monotonic_ns() - start_ns
    capture = window.close()
    early = engine.open_window(start_ns=time.monotonic_ns() + 10**12)
    burn_a(0.1)
    empty = early.close()

    assert {key[0] for key in by_function_and_label(capture)} == {"b"}
    assert waited_ns >= 100_000_000
    assert abs(capture.duration_ns - waited_ns) < 50_000_000
    assert (empty.rows, empty.duration_ns) == ([], 0)


def test_labels_follow_threads_that_start_during_a_window() -> None:
    """A thread started in a window is armed at once and reads its own context."""

    def work(label: str) -> None:
        cell = LabelCell(label)
        LABELS.set(cell)
        BURN[label](0.3)
        cell.publish()

    window = engine.open_window()
    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = by_function_and_label(window.close())

    assert set(total) == {("a", "a"), ("b", "b")}


def test_a_live_request_is_resolved_from_its_source() -> None:
    """A window that closes while a request runs asks its source for labels."""
    cell = LabelCell()
    cell.source = lambda: "late"
    LABELS.set(cell)

    window = engine.open_window()
    burn_a(0.2)
    capture = window.close()
    LABELS.set(None)

    assert set(by_function_and_label(capture)) == {("a", "late")}


def test_a_live_request_sampled_in_a_block_of_its_own_is_resolved() -> None:
    """The request itself was never sampled, and its labels are wanted all the same."""
    request = LabelCell()
    request.source = lambda: "late"
    inner = LabelCell("inner", request)
    LABELS.set(inner)
    try:
        window = engine.open_window(250)
        burn_a(0.1)
        capture = window.close()
    finally:
        LABELS.set(None)

    assert ("late", "inner") in capture.chains.values()


def test_a_source_that_raises_costs_the_label_only() -> None:
    """Our failure never breaks the profile."""
    cell = LabelCell()

    def fail() -> None:
        raise RuntimeError("no route")

    cell.source = fail
    LABELS.set(cell)

    window = engine.open_window()
    burn_a(0.2)
    capture = window.close()
    LABELS.set(None)

    assert set(by_function_and_label(capture)) == {("a", "")}


def test_a_child_cell_inherits_the_parents_final_labels() -> None:
    """Overlays of a nested cell come after those its parent ends with."""
    parent = LabelCell()
    child = LabelCell("child", parent)
    LABELS.set(child)

    window = engine.open_window()
    burn_a(0.2)
    LABELS.set(None)
    child.publish()
    parent.labels = "parent"
    parent.publish()
    capture = window.close()

    assert ("parent", "child") in capture.chains.values()


def test_windows_share_the_sampler_and_are_limited() -> None:
    """The fifth of four is refused and told when to come again."""
    windows = [engine.open_window(seconds=7) for _ in range(4)]

    with pytest.raises(WindowsExhausted) as refused:
        engine.open_window()
    burn_a(0.3)
    totals = [sum(row[3] for row in window.close().rows) for window in windows]

    assert 1 <= refused.value.retry_after_s <= 7
    # Closing one window burns CPU that the next still sees.
    assert min(totals) > 2e8
    assert max(totals) - min(totals) <= 5e7


def test_code_that_dies_before_the_drain_keeps_its_name() -> None:
    """Sampled code objects are named before they are freed."""
    window = engine.open_window(250)
    end = time.thread_time() + 0.5
    while time.thread_time() < end:
        space: dict[str, Callable[[], int]] = {}
        exec("def short_lived():\n return sum(i*i for i in range(3000))", space)
        space["short_lived"]()
        del space

    capture = window.close()
    names = Counter[str]()
    for stack, _, count, _ in capture.rows:
        names.update(
            {capture.frames[i][1]: count for i in capture.stacks[stack] if i >= 0}
        )

    assert names["short_lived"] > 50


def test_a_forked_child_starts_anew() -> None:
    """The child of a fork has no window of its parent's and can open its own."""
    window = engine.open_window()
    child = os.fork()
    if child == 0:
        try:
            clean = engine.info().windows == 0
            mine = engine.open_window()
            burn_a(0.3)
            good = bool(mine.close().rows)
            os._exit(0 if clean and good else 1)
        except BaseException:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    window.close()

    assert os.waitstatus_to_exitcode(status) == 0


def test_a_foreign_sigprof_owner_is_respected() -> None:
    """The engine refuses to start when somebody else owns SIGPROF."""
    code = """
import signal
signal.signal(signal.SIGPROF, lambda *a: None)
from stroboscope._core import engine
from stroboscope.errors import EngineUnavailable
try:
    engine.open_window()
except EngineUnavailable as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout == "SIGPROF belongs to another handler in this process\n"


def test_a_late_sigprof_does_not_kill() -> None:
    """After the last window our handler stays, for the default action is death."""
    engine.open_window().close()

    os.kill(os.getpid(), signal.SIGPROF)


def test_a_real_crash_still_reaches_faulthandler() -> None:
    """A fault outside our handler goes where it went before us, and ends there."""
    code = """
import faulthandler, ctypes, sys
if sys.argv[1] == "before": faulthandler.enable()
from stroboscope._core import engine
window = engine.open_window()
if sys.argv[1] == "after":
    import time
    faulthandler.enable(); time.sleep(0.3)
ctypes.string_at(0)
"""
    for order in ("before", "after", "never"):
        done = subprocess.run(
            [sys.executable, "-c", code, order],
            capture_output=True,
            text=True,
            timeout=20,
        )

        assert done.returncode == -signal.SIGSEGV, order
        assert ("Segmentation fault" in done.stderr) is (order != "never")


def test_nothing_runs_at_import() -> None:
    """Importing starts no thread and takes no signal."""
    code = """
import signal, threading
import stroboscope._core as core
print(threading.active_count(), core.engine.info().counters["sigprof"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout == "1 0\n"


def test_the_rate_changes_while_a_window_is_open() -> None:
    """Samples at either rate weigh what their rate says: the total stays CPU time."""
    window = engine.open_window(100)
    burn_a(0.5)
    before = engine.info().counters["samples"]
    engine.set_rate(10)
    burn_a(1.0)
    taken = engine.info().counters["samples"] - before

    capture = window.close()

    assert taken <= 15
    total_ns = sum(ns for _, _, _, ns in capture.rows)
    assert total_ns == pytest.approx(1.5e9, rel=0.2)


def test_contexts_show_each_threads_cell() -> None:
    """The label cell of another thread is read with the GIL, None without one."""
    cell = LabelCell("there")
    ready, done = threading.Event(), threading.Event()

    def work() -> None:
        LABELS.set(cell)
        ready.set()
        done.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait(10)
    found = engine.contexts()
    done.set()
    thread.join()

    assert found[thread.ident or 0] is cell
    assert found[threading.get_ident()] is None


def test_two_thousand_threads_cost_little_to_look_after() -> None:
    """Looking after the threads holds the GIL for less than 2 ms a time."""
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(2000)]
    for thread in threads:
        thread.start()
    window = engine.open_window(100)
    time.sleep(0.3)
    before = engine.info().counters["drainer_ns"]
    time.sleep(1)
    spent_ns = engine.info().counters["drainer_ns"] - before
    threads_armed = engine.info().counters["threads"]
    window.close()
    done.set()
    for thread in threads:
        thread.join()

    assert threads_armed >= 2000
    assert spent_ns / 10 < 2e6


def test_a_thread_armed_on_the_wrong_clock_is_armed_anew() -> None:
    """A thread's state may carry its creator's id when it is first seen."""
    thread = threading.Thread(target=burn_a, args=(0.8,))
    window = engine.open_window(100)
    thread.start()
    assert _native.misarm(thread.ident or 0)
    thread.join()
    capture = window.close()

    total = by_function_and_label(capture)
    assert total["a", ""] > 0.5e9


@pytest.mark.native
def test_only_frames_of_the_program_are_seen() -> None:
    """From 3.13 an __init__ called often runs above a frame of the interpreter's own,
    which no traceback shows. The engine, which looks whether it reads frames right,
    works there, too."""

    class Made:
        def __init__(self, depth: int) -> None:
            self.below = Made(depth - 1) if depth else None
            if not depth:
                assert _native.check()
                end = time.thread_time() + 0.02
                while time.thread_time() < end:
                    sum(range(50))

    window = engine.open_window(250)
    for _ in range(20):
        Made(3)
    capture = window.close()

    names = Counter(name for _, name, *_ in capture.frames)
    files = {file for file, *_ in capture.frames}
    assert any(name.endswith("Made.__init__") for name in names)
    assert "__init__" not in names | Counter(files)
