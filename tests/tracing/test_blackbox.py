"""After a process was killed, its box tells what it was doing; and any bytes are safe."""

import asyncio
import contextlib
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from perfetto_sql import Processor
from servers import GUNICORN, serving, token

import stroboscope as strobe
from stroboscope._core import recording
from stroboscope.endpoints.blackboxes import at_work
from stroboscope.errors import RecordingFormatError
from stroboscope.formats import chrome, perfetto
from stroboscope.formats.blocks import first_events, last_events
from stroboscope.formats.timeline import ALIVE, LOG, OPEN_RIGHT, Timeline
from stroboscope.tracing import Recorder, recorder
from stroboscope.tracing.blackbox import Box, take_dead
from stroboscope.workers.folder import Folder

ROOT = Path(__file__).parents[2]

#: A process that works until it is killed, or kills itself.
VICTIM = """
import os, resource, signal, sys, threading, time
import stroboscope as strobe
from stroboscope._core import recording
from stroboscope.tracing import recorder
from stroboscope.workers.folder import Folder
recorder.configure("shop", 1 << 20, Folder(sys.argv[1], "shop"))
recorder.set_flight(True)
while not recording.trace_wanted():
    time.sleep(0.01)

def busy(name):
    while True:
        with strobe.task("request"), strobe.region(name):
            strobe.log("cache", "miss %d", time.monotonic_ns())

threads = [threading.Thread(target=busy, args=(f"r{i}",), daemon=True) for i in range(3)]
for thread in threads: thread.start()

def deep_in_trouble():
    with strobe.task("http:/checkout"), strobe.region("db.fetch"):
        print("ready", flush=True)
        time.sleep(1.2)
        how = sys.argv[2]
        if how == "segfault":
            import ctypes; ctypes.string_at(8)
        if how == "processor":
            resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
            while True: pass
        if how == "memory":
            open(sys.argv[3], "w").write(str(os.getpid()))
            held = []
            while True: held.append(bytearray(1 << 20))
        if how == "exit":
            return
        time.sleep(60)
deep_in_trouble()
"""


def victim(base: Path, how: str, *more: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler=0", "-c", VICTIM, str(base), how, *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@contextlib.contextmanager
def little_memory() -> Iterator[str]:
    """A control group of 200 MB, by the file that takes its processes."""
    root = Path("/sys/fs/cgroup")
    one = (root / "memory").is_dir()
    group = (root / "memory" if one else root) / f"stroboscope-{os.getpid()}"
    limit = "memory.limit_in_bytes" if one else "memory.max"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            (group / limit).write_text(str(200 << 20))
        except OSError as error:
            pytest.skip(f"control groups do not limit memory here: {error}")
        yield str(group / "cgroup.procs")
    finally:
        group.rmdir()


@pytest.mark.parametrize("how", ["kill", "segfault", "processor", "memory"])
def test_a_killed_process_is_found_with_what_it_did(tmp_path: Path, how: str) -> None:
    """Its tasks, regions, logs and stacks, whatever killed it (the kernel for its memory
    as well); and only once."""
    with contextlib.ExitStack() as stack:
        more = [stack.enter_context(little_memory())] if how == "memory" else []
        process = stack.enter_context(victim(tmp_path, how, *more))
        if how == "kill":
            time.sleep(1)
            process.kill()
        process.wait(20)
    assert process.returncode in (-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGXCPU)

    folder = Folder(str(tmp_path), "shop")
    (dead,) = take_dead(folder)

    line = dead.timeline
    assert dead.pid == process.pid
    assert line.torn <= 3, "at most what each thread was writing"
    assert line.events > 1000
    alive = [t for t in line.tasks() if t.flags & ALIVE]
    assert "http:/checkout in db.fetch" in at_work(line)
    (stuck,) = [t for t in alive if line.name(t.name) == "http:/checkout"]
    (span,) = line.spans_of(stuck)
    assert span.flags & OPEN_RIGHT
    assert stuck.end_ns - stuck.begin_ns > 0.5e9
    logs = [line.text(n) for n in line.notes() if n.kind == LOG]
    assert logs[-1].startswith("miss ")
    stacks = {text.partition(" ")[0]: text for _, text in line.stacks}
    assert "\ndeep_in_trouble <string>:" in stacks["MainThread"]
    assert len(stacks) == 4
    assert list(take_dead(folder)) == []
    assert folder.names() == []


def test_a_process_that_ends_in_order_leaves_nothing(tmp_path: Path) -> None:
    """It takes its box along."""
    with victim(tmp_path, "exit") as process:
        process.wait(20)

    assert Folder(str(tmp_path), "shop").names() == []


def test_a_living_process_keeps_its_box(tmp_path: Path) -> None:
    """Nobody takes it, and its child by fork neither holds nor removes it."""
    folder = Folder(str(tmp_path), "shop")
    recorder.configure("shop", 32 << 10, folder)
    recorder.set_flight(True)
    for _ in range(500):
        if recorder.snapshot() is not None:
            break
        time.sleep(0.01)
    try:
        (name,) = folder.names()
        child = os.fork()
        if child == 0:
            with strobe.task("child"), strobe.region("child"):
                os._exit(0 if recorder.snapshot() is None else 3)
        assert os.waitpid(child, 0)[1] == 0
        assert list(take_dead(folder)) == []
        assert folder.names() == [name]
        block = recorder.snapshot()
        assert block is not None
        assert list(Timeline.read(block).tasks()) == []
    finally:
        recorder.close()
    assert folder.names() == []


def test_a_box_that_is_being_made_is_nobodys(tmp_path: Path) -> None:
    """A worker that looks for the dead as another begins costs that one nothing; what
    was left like that long ago goes."""
    folder = Folder(str(tmp_path), "shop")
    name = "box-1234-0123456789ab"
    os.close(folder.open(name))
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(lambda: [list(take_dead(folder)) for _ in range(2000)])
        for _ in range(50):
            made = Box(folder, 1024, "shop")
            recording.trace_close()
            made.remove()
        looking.result()

    assert folder.names() == [name]
    os.utime(tmp_path / "shop" / name, (1, 1))
    assert list(take_dead(folder)) == []
    assert folder.names() == []


def test_a_disk_that_is_full_costs_the_file_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ring is in memory then, and says why."""
    from stroboscope.tracing import blackbox

    def full(*args: object) -> None:
        if args[0] != -1:
            raise OSError(28, "No space left on device")
        opened(*args)

    opened = blackbox.recording.trace_open
    monkeypatch.setattr(blackbox.recording, "trace_open", full)
    folder = Folder(str(tmp_path), "shop")
    made = Recorder()
    made.configure("shop", 32 << 10, folder)
    try:
        assert made.capture(0.01, lambda: False).ended == "complete"
        assert "No space left" in made.problem
        assert folder.names() == []
    finally:
        made.close()


@contextlib.contextmanager
def recorded() -> Iterator[None]:
    recorder.close()
    recorder.configure("shop", 32 << 10)
    recorder.set_flight(True)
    try:
        yield
    finally:
        recorder.close()


def sound_block() -> bytes:
    async def child(name: str) -> None:
        with strobe.region(name):
            strobe.log("cache", "miss %s", name)
            await asyncio.sleep(0)

    async def main() -> None:
        with strobe.task("job"), strobe.region("all"):
            await asyncio.gather(child("a"), child("b"))

    with recorded():
        asyncio.run(main())
        with strobe.task("open"), strobe.region("unfinished"):
            block = recorder.snapshot()
    assert block is not None
    return block


SOUND = sound_block()


def read_or_refuse(block: bytes) -> None:
    """All of a reader's ways through the bytes; the one error is ours."""
    try:
        line = Timeline.read(block)
    except RecordingFormatError:
        return
    perfetto.encode(line)
    chrome.encode(line)
    for cut in (first_events(block, 3), last_events(block, 4)):
        with contextlib.suppress(RecordingFormatError):
            Timeline.read(cut)
    for task in line.tasks():
        assert line.task(task.serial) == task
        list(line.spans_of(task))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_damage_is_read_or_refused(data: st.DataObject) -> None:
    """Bytes changed anywhere, words of the header above all: no crash, no hang."""
    block = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 6))):
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, 64)) * 8
            word = data.draw(
                st.sampled_from([0, 1, 7, 2**63, 2**64 - 1, len(block), len(block) - 8])
                | st.integers(0, 2**64 - 1)
            )
            block[at : at + 8] = struct.pack("<Q", word)
        else:
            at = data.draw(st.integers(0, len(block) - 1))
            block[at] = data.draw(st.integers(0, 255))
    read_or_refuse(bytes(block))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(SOUND)), st.binary(max_size=200))
def test_what_is_cut_off_is_refused(length: int, more: bytes) -> None:
    """Truncated anywhere, or other bytes altogether."""
    read_or_refuse(SOUND[:length])
    read_or_refuse(more)
    if length < len(SOUND):
        with pytest.raises(RecordingFormatError):
            Timeline.read(SOUND[:length])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_torn_event_is_dropped_and_no_other(data: st.DataObject) -> None:
    """One record half written: its check does not fit, all others stand."""
    whole = Timeline.read(SOUND)
    events_at = struct.unpack_from("<Q", SOUND, 104)[0]  # sb_box.events_at
    number = data.draw(st.integers(0, whole.events - 1))
    byte = data.draw(st.integers(0, 31))
    block = bytearray(SOUND)
    block[events_at + number * 32 + byte] ^= data.draw(st.integers(1, 255))

    line = Timeline.read(bytes(block))

    assert (line.torn, line.events) == (1, whole.events - 1)


@pytest.mark.parametrize("count", [10, 1024, 1500, 5000])
def test_of_a_long_ring_the_last_events_are_as_a_snapshot_has_them(count: int) -> None:
    """A power of two of them, wherever the ring goes round; of a short one all."""
    with recorded():
        recorder.close()
        recorder.configure("shop", 128 << 10)
        recorder.set_flight(True)
        for number in range(count):
            with strobe.task(f"t{number % 7}"):
                pass
        whole, cut = recorder.snapshot(), recorder.snapshot(1024)
    assert whole is not None
    assert cut is not None

    last, expected = Timeline.read(last_events(whole, 1024)), Timeline.read(cut)

    assert last.task_rows == expected.task_rows
    assert (last.events, last.torn) == (min(2 * count, 1024), 0)
    assert last_events(whole, 1 << 20) is whole
    assert last_events(whole[:100], 1024) == whole[:100]


@pytest.mark.slow
def test_the_next_worker_tells_of_the_killed_one(
    tmp_path: Path, processor: Processor
) -> None:
    """gunicorn: a worker dies by SIGKILL under load; its box is among the captures."""
    environ = {"STROBOSCOPE_RUNDIR": str(tmp_path)}
    auth = {"Authorization": f"Bearer {token('admin')}"}
    command = GUNICORN + "-k uvicorn.workers.UvicornWorker -w 1"
    with serving(command, "examples.fastapi_app:app", **environ) as (base, _):
        done = threading.Event()

        def load() -> None:
            while not done.is_set():
                with contextlib.suppress(httpx.HTTPError):
                    httpx.get(f"{base}/render/home", timeout=5)

        loading = threading.Thread(target=load)
        loading.start()
        time.sleep(1)
        first = httpx.get(f"{base}/debug/selfcheck", headers=auth).json()["process"]
        os.kill(first, signal.SIGKILL)
        found = []
        for _ in range(100):
            time.sleep(0.1)
            with contextlib.suppress(httpx.HTTPError, ValueError):
                listed = httpx.get(f"{base}/debug/captures", headers=auth).json()
                found = [one for one in listed if one["kind"] == "blackbox"]
            if found:
                break
        done.set()
        loading.join()
        body = httpx.get(base + found[0]["url"], headers=auth).content

    assert f"process {first} was killed" in found[0]["reason"]
    processor.load(body)
    assert processor.problems() == []
    rows = processor.query("select count(*) as n from slice where name glob 'http:*'")
    assert rows[0]["n"] > 10
