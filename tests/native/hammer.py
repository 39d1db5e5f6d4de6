"""The crash hunt: everything that moves under a sampler, at once, for a while.

`python tests/native/hammer.py SECONDS` exits 0 when nothing crashed and no sample's
label contradicted its stack. A storm of sampler signals comes on top of the timers.
"""

import asyncio
import contextlib
import contextvars
import gc
import importlib
import os
import pathlib
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NoReturn

from stroboscope import log, region, task
from stroboscope._core import LABELS, Capture, LabelCell, _native, engine
from stroboscope._core.contention import contention
from stroboscope.errors import EngineUnavailable, WindowsExhausted
from stroboscope.formats import perfetto
from stroboscope.formats.profile import Profile
from stroboscope.formats.timeline import Timeline
from stroboscope.labels import TABLE, label_set
from stroboscope.profiles import heap, stacks, wall
from stroboscope.profiles.native_cpu import collect_native_cpu
from stroboscope.tracing import recorder

VARIABLES = [contextvars.ContextVar[int](f"v{i}") for i in range(200)]


def burn_a(n: int) -> int:
    return sum(i * i for i in range(n))


def burn_b(n: int) -> int:
    return sum(i * i for i in range(n))


BURN: dict[str, Callable[[int], int]] = {"a": burn_a, "b": burn_b}


def labelled(label: str) -> LabelCell:
    for variable in random.sample(VARIABLES, random.choice((1, 17, 200))):
        variable.set(1)
    cell = LabelCell(label_set({"name": label}))
    cell.shown = f"/{label}"
    LABELS.set(cell)
    return cell


def threads_come_and_go() -> None:
    def work(label: str) -> None:
        cell = labelled(label)
        BURN[label](2000)
        cell.publish()

    some = [threading.Thread(target=work, args=(name,)) for name in "abab"]
    for thread in some:
        thread.start()
    for thread in some:
        thread.join()


def code_comes_and_goes() -> None:
    for i in range(50):
        space: dict[str, Callable[[], int]] = {}
        exec(f"def f():\n return sum(range({i}))\nf()", space)
        (lambda: space["f"]())()


def deep(n: int) -> int:
    return 0 if n == 0 else 1 + deep(n - 1)


def generators_and_errors() -> None:
    def numbers() -> Iterator[int]:
        try:
            yield from range(20)
        finally:
            burn_a(10)

    for _ in range(50):
        stream = numbers()
        next(stream)
        stream.close()
        try:
            raise ValueError
        except ValueError:
            deep(200)


class SlowToTell(asyncio.tasks._PyTask):  # type: ignore[name-defined,misc]
    """Runs Python, and lets other threads run, whenever somebody looks at it."""

    @property
    def _state(self) -> str:
        time.sleep(0)
        return self.__dict__.get("_state", "PENDING")

    @_state.setter
    def _state(self, value: str) -> None:
        self.__dict__["_state"] = value

    @property
    def _coro(self) -> object:
        deep(5)
        return self.__dict__["_coro"]

    @_coro.setter
    def _coro(self, value: object) -> None:
        self.__dict__["_coro"] = value


class Grudging(asyncio.Task):  # type: ignore[type-arg]
    """Does not say what it runs."""

    def get_coro(self) -> NoReturn:
        raise RuntimeError

    get_context = get_coro


TASKS = (asyncio.Task, asyncio.Task, Grudging, SlowToTell)


def tasks_interleave() -> None:
    async def request(label: str) -> None:
        cell = labelled(label)
        for _ in range(5):
            BURN[label](500)
            await asyncio.sleep(0)
        await asyncio.to_thread(BURN[label], 500)
        cell.publish()

    async def main() -> None:
        kind = random.choice(TASKS)
        await asyncio.gather(*(kind(request(name)) for name in "abababab"))

    asyncio.run(main())


def processes_fork() -> None:
    subprocess.run(["/bin/true"], check=True)
    # The address sanitizer's allocator keeps its locks in a child of a fork: one that
    # a thread held at that moment is held for ever.
    if "no-fork" in sys.argv:
        return
    child = os.fork()
    if child == 0:
        in_a_child()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"a forked child ended with {status}"


def in_a_child() -> None:
    """Whoever forked, and whatever stood open: a child profiles itself, or is ended."""
    status = 3
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM,))
        labelled("a")
        window = engine.open_window(1000)
        wall.collect_wall(0.02, burn_for_it, windows=8)
        status = 0 if window.close().rows else 4
    except BaseException as error:
        os.write(2, f"in a child: {error!r}\n".encode())
    finally:
        os._exit(status)


def burn_for_it(window: object) -> None:
    end = time.process_time() + 0.1
    while time.process_time() < end:
        burn_a(1000)


def threads_fork() -> None:
    if random.random() < 0.2:
        processes_fork()


def collector_runs() -> None:
    gc.collect()


def signals_from_others() -> None:
    for _ in range(20):
        os.kill(os.getpid(), signal.SIGPROF)
        os.kill(os.getpid(), signal.SIGUSR1)


def modules_reload() -> None:
    import this_is_reloaded

    for _ in range(3):
        importlib.reload(this_is_reloaded)


def coroutines_are_dropped() -> None:
    async def never_finished() -> None:
        with contextlib.suppress(GeneratorExit):
            await asyncio.sleep(10)

    for _ in range(20):
        coroutine = never_finished()
        coroutine.close()


def hold_a(kept: list[object], size: int) -> None:
    kept.append([bytes(size) for _ in range(20)])


def hold_b(kept: list[object], size: int) -> None:
    kept.append([bytearray(size) for _ in range(20)])


HOLD: dict[str, Callable[[list[object], int], None]] = {"a": hold_a, "b": hold_b}
KEPT: list[object] = []


def memory_comes_and_goes() -> None:
    """Under labels, across threads: what one thread made another frees."""
    for name in "abab":
        cell = labelled(name)
        HOLD[name](KEPT, random.choice((1, 30, 600, 5000, 200_000)))
        growing: list[int] = []
        growing.extend(range(random.choice((10, 1000))))
        del growing[5:]
        cell.publish()
    if len(KEPT) > 100:
        del KEPT[: random.randrange(100)]


def heap_switches() -> None:
    heap.set_rate(random.choice((0, 1, 100, 65_536)))
    if random.random() < 0.1:
        tracemalloc.stop() if tracemalloc.is_tracing() else tracemalloc.start()


LOCKS = (threading.Lock(), threading.RLock(), threading.Condition())
ITEMS = queue.SimpleQueue[int]()


def locks_are_fought_over() -> None:
    labelled(random.choice("ab"))
    for _ in range(20):
        lock = random.choice((*LOCKS, threading.Lock(), threading.RLock()))
        with lock:
            time.sleep(random.choice((0, 0.0002)))
        if lock.acquire(timeout=0.0005):
            lock.release()
        with LOCKS[2]:
            LOCKS[2].wait(0.0001)
        ITEMS.put(1)
        ITEMS.get()

    taken = asyncio.Lock()

    async def fights(lock: asyncio.Lock) -> None:
        labelled(random.choice("ab"))
        async with lock:
            await asyncio.sleep(0)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(taken.acquire(), 0.0001)

    async def main() -> None:
        lock = asyncio.Lock()
        await taken.acquire()
        await asyncio.gather(*(fights(lock) for _ in range(10)))

    asyncio.run(main())


def traced(label: str) -> None:
    with task(label), region(label):
        log("hammer", "%s %d", label, random.randrange(9))
        BURN[label](50)
        with contextlib.suppress(KeyError), region("fails"):
            raise KeyError(label)


def requests_are_traced() -> None:
    async def request(label: str) -> None:
        with task(label):
            await asyncio.gather(
                asyncio.to_thread(traced, label), asyncio.sleep(0), later(label)
            )

    async def later(label: str) -> None:
        async with region(label):
            await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(*(request(name) for name in "abab"))

    def steps(label: str) -> Iterator[None]:
        with region(label):
            yield

    kept = [steps(name) for name in "ab"]
    for generator in kept:
        next(generator)
    asyncio.run(main())
    kept.pop()
    random.shuffle(kept)


def recorder_comes_and_goes() -> None:
    with contextlib.suppress(EngineUnavailable, RuntimeError):
        chance = random.random()
        if chance < 0.2:
            recorder.close()
        recorder.configure("hammer", random.choice((32 << 10, 1 << 20)))
        recorder.set_flight(chance < 0.9)
        if chance > 0.6:
            taken = recorder.capture(0.05, lambda: random.random() < 0.3)
            perfetto.encode(Timeline.read(taken.block))
        block = recorder.snapshot()
        if block is not None:
            perfetto.encode(Timeline.read(block))


WALL: Counter[str] = Counter()


def stacks_are_read_at_rest() -> None:
    """All threads and tasks, and a short wall profile, whose labels are judged too."""
    stacks.to_profile(stacks.snapshot(), 1)
    judge_wall(0.03)


def wall_is_open(end: float) -> None:
    """A window is open all the time, and ticks ask the main thread for their turns."""
    while time.monotonic() < end:
        judge_wall(1.0)


def judge_wall(seconds: float) -> None:
    try:
        profile = wall.collect_wall(seconds, lambda window: None, windows=8)
    except WindowsExhausted:
        return
    WALL["profiles"] += 1
    for sample in profile.samples:
        names = {frame.function for frame in sample.stack} & {"burn_a", "burn_b"}
        label = dict(sample.labels).get("name")
        if label and len(names) == 1:
            WALL["right" if label == names.pop()[-1] else "wrong"] += 1


NATIVE: Counter[str] = Counter()


def native_frames_are_taken(end: float) -> None:
    """One capture after the other; their labels and where C goes on are judged."""
    while time.monotonic() < end:
        with contextlib.suppress(WindowsExhausted):
            profile = collect_native_cpu(0.5, lambda window: None, hz=1000, windows=8)
            judge_native(profile)


def judge_native(profile: Profile) -> None:
    for sample in profile.samples:
        is_native = [frame.address != 0 for frame in sample.stack]
        NATIVE["samples"] += sample.values[0]
        NATIVE["native"] += sample.values[0] * any(is_native)
        # C calls are above all of Python's, a mark where they could not be followed.
        NATIVE["wrong"] += is_native != sorted(is_native, reverse=True)
        names = {frame.function for frame in sample.stack} & {"burn_a", "burn_b"}
        label = dict(sample.labels).get("name")
        if label and len(names) == 1:
            NATIVE["right" if label == names.pop()[-1] else "wrong"] += 1
    NATIVE["cut"] += any("[not followed]" in said for said in profile.comments)
    NATIVE["none"] += any("native frames: none" in said for said in profile.comments)


WORK = (
    locks_are_fought_over,
    stacks_are_read_at_rest,
    threads_fork,
    memory_comes_and_goes,
    memory_comes_and_goes,
    heap_switches,
    requests_are_traced,
    requests_are_traced,
    recorder_comes_and_goes,
    signals_from_others,
    modules_reload,
    coroutines_are_dropped,
    threads_come_and_go,
    code_comes_and_goes,
    generators_and_errors,
    tasks_interleave,
    collector_runs,
)


def worker(end: float, failures: list[BaseException]) -> None:
    try:
        while time.monotonic() < end:
            contextvars.Context().run(random.choice(WORK))
    except BaseException as error:
        failures.append(error)


#: Another process reads what the handler leaves, as fast as it can, and believes no
#: sample whose endpoint contradicts its stack. It ends with its standard input.
READER = """
import os, select, sys
from stroboscope.formats.samples import parse
file, seen, wrong = os.open(sys.argv[1], os.O_RDONLY), 0, 0
while not select.select([0], [], [], 0)[0]:
    for one in parse(os.pread(file, 1 << 20, 0)):
        burning = {f.function[-1] for f in one.frames if f.function in ("burn_a", "burn_b")}
        seen += len(burning) == 1 and bool(one.endpoint)
        wrong += len(burning) == 1 and one.endpoint not in ("", "/" + burning.pop())
        wrong += not all(f.file.endswith((".py", ">")) for f in one.frames if f.file)
print(seen, wrong)
"""


@contextlib.contextmanager
def left_samples(folder: str, seen: Counter[str]) -> Iterator[None]:
    path = os.path.join(folder, "1.samples")
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    _native.samples_open(file)
    os.close(file)
    _native.samples_show(True)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield
    finally:
        out, _ = reader.communicate("end")
        _native.samples_show(False)
        _native.samples_close()
    seen["left"], seen["left wrong"] = map(int, out.split())


def judge(capture: Capture, seen: Counter[str]) -> None:
    for stack, serial, count, _ in capture.rows:
        names = {capture.frames[i][1] for i in capture.stacks[stack] if i >= 0}
        chain = capture.chains.get(serial, ())
        burning = [n[-1] for n in names if n in ("burn_a", "burn_b")]
        seen["samples"] += count
        if len(burning) == 1 and chain:
            labels = TABLE.merge(chain)
            seen["right" if labels["name"] == burning[0] else "wrong"] += count


def judge_heap(profile: Profile, seen: Counter[str]) -> None:
    for sample in profile.samples:
        names = {frame.function for frame in sample.stack} & {"hold_a", "hold_b"}
        label = dict(sample.labels).get("name")
        if label and len(names) == 1:
            is_right = label == names.pop()[-1]
            seen["heap right" if is_right else "heap wrong"] += 1
        seen["heap"] += 1
        if min(sample.values) < 0:
            seen["heap below zero"] += 1


def main(seconds: float) -> int:
    gc.set_threshold(1)
    signal.signal(signal.SIGUSR1, lambda number, frame: deep(20))
    folder = tempfile.mkdtemp()
    pathlib.Path(folder, "this_is_reloaded.py").write_text("f = lambda: [f]\n" * 50)
    sys.path.insert(0, folder)
    __import__("this_is_reloaded")
    # From now on our handler stays: a foreign SIGPROF without one kills the process.
    engine.open_window(100).close()
    end = time.monotonic() + seconds
    failures: list[BaseException] = []
    seen = Counter[str]()
    some = [
        threading.Thread(target=worker, args=(end, failures), daemon=True)
        for _ in range(3)
    ]
    some += [
        threading.Thread(target=also, args=(end,))
        for also in (native_frames_are_taken, wall_is_open)
    ]
    for thread in some:
        thread.start()
    with left_samples(folder, seen):
        while time.monotonic() < end and not failures:
            contention.set_mutex_fraction(random.choice((0, 1, 1, 3)))
            contention.set_block_rate(random.choice((0, 1, 1, 1000)))
            window = engine.open_window(1000, limit=8)
            storm = threading.Thread(target=_native.storm, args=(1500, 4000))
            storm.start()
            processes_fork()
            while storm.is_alive():
                tasks_interleave()
                burn_a(5000)
            storm.join()
            judge(window.close(), seen)
            judge_heap(heap.collect_heap(), seen)
        for thread in some:
            thread.join()
    contention.set_mutex_fraction(0)
    contention.set_block_rate(0)
    for name in ("mutex", "block"):
        seen[name] = len(contention.copy(name) or ())
    counters = engine.info().counters
    print(dict(seen), {k: v for k, v in counters.items() if v}, _native.heap_info())
    for failure in failures:
        print("failed:", repr(failure))
    print("wall", dict(WALL), "native", dict(NATIVE), _native.copies_counts())
    print("turns asked for, and had:", *_native.turn_counts())
    wrong = (
        seen["wrong"]
        + NATIVE["wrong"]
        + seen["left wrong"]
        + seen["heap wrong"]
        + seen["heap below zero"]
        + WALL["wrong"]
    )
    looked = all(
        (
            seen["right"],
            seen["heap right"],
            seen["left"],
            NATIVE["right"],
            WALL["right"],
        )
    )
    return 1 if failures or wrong or not looked else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
