"""The samples a handler leaves in a file: read whole, or not believed."""

import asyncio
import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

from stroboscope._core import LABELS, LabelCell, _native, engine
from stroboscope.formats.samples import parse


def burn_here(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(200))


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Path]:
    """A file that samples go to."""
    path = tmp_path / "1.samples"
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    _native.samples_open(file)
    os.close(file)
    yield path
    _native.samples_close()


def hold(seconds: float) -> None:
    """Keep the interpreter, asleep in C, under a label with an endpoint."""
    code = f"import time; time.sleep({seconds})"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None

    read = ctypes.PyDLL(None).read
    read(child.stdout.fileno(), ctypes.create_string_buffer(8), 8)
    child.stdout.close()
    child.wait()


def watched() -> threading.Thread:
    def wait() -> None:
        while _native.watch_wait(0.1):
            pass

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_who_holds_the_interpreter_leaves_its_place(kept: Path) -> None:
    """File, function and line as text, and the endpoint where it is known; the watch
    asks once a second, not before the threshold."""
    cell = LabelCell("x")
    cell.shown = "/checkout/{item}"
    cell.shown = "/set/once"
    _native.watch_start(100_000_000)
    watcher = watched()
    LABELS.set(cell)
    try:
        hold(1.8)
    finally:
        LABELS.set(None)
        _native.watch_stop()
        watcher.join()

    found = parse(kept.read_bytes())
    assert 1 <= len(found) <= 3
    newest = found[0]
    assert newest.frames[0].function == "hold"
    assert newest.frames[0].file.endswith("test_samples.py")
    first = hold.__code__.co_firstlineno
    assert first < newest.frames[0].line <= first + 12
    assert newest.endpoint == "/checkout/{item}"
    assert newest.serial == cell.serial
    assert newest.is_holder
    assert newest.is_main
    assert cell.sampled
    assert os.stat(kept).st_mode & 0o777 == 0o600


def test_at_rest_nothing_is_left(kept: Path) -> None:
    """While the interpreter can be had nobody is interrupted, profile or none."""
    _native.watch_start(100_000_000)
    watcher = watched()
    window = engine.open_window(250)
    burn_here(0.3)
    window.close()
    _native.watch_stop()
    watcher.join()

    assert parse(kept.read_bytes()) == []


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def test_lines_are_read_as_the_interpreter_reads_them() -> None:
    """Of every instruction of large modules, from the table alone."""
    count = 0
    for module in (asyncio.base_events, subprocess, threading, pytest, os):
        source = Path(str(module.__file__)).read_text()
        for code in codes(compile(source, "x", "exec")):
            got = _native.code_lines(code)
            for begin, end, line in code.co_lines():
                for offset in range(begin, end, 2):
                    assert got[offset // 2] == (
                        code.co_firstlineno if line is None else line
                    )
                    count += 1

    assert count > 10_000


@pytest.mark.parametrize("at", [8, 16, 40, 60, 100])
def test_a_torn_sample_is_not_believed(kept: Path, at: int) -> None:
    """One byte of it is enough, in its head or its text; so is an odd sequence."""
    _native.watch_start(100_000_000)
    watcher = watched()
    hold(0.6)
    _native.watch_stop()
    watcher.join()
    raw = bytearray(kept.read_bytes())
    (one,) = parse(bytes(raw))
    start = next(a for a in range(4096, len(raw), 4096) if raw[a])

    raw[start + at] ^= 1
    assert parse(bytes(raw)) == []
    raw[start + at] ^= 1
    assert parse(bytes(raw)) == [one]
    raw[start] ^= 1
    assert parse(bytes(raw)) == []


@pytest.mark.parametrize("raw", [b"", b"SBSAMP01", os.urandom(9000), bytes(140_000)])
def test_what_is_no_such_file_has_no_samples(raw: bytes) -> None:
    """Empty, cut, random, all zero."""
    assert parse(raw) == []


def test_a_file_cut_short_ends_the_leaving_not_the_process(kept: Path) -> None:
    """Somebody truncates it: the next write is a fault, and the last."""
    _native.watch_start(100_000_000)
    watcher = watched()
    os.truncate(kept, 0)
    hold(0.6)
    _native.watch_stop()
    watcher.join()

    assert not _native.samples_are_kept()


FOREIGN = """
import ctypes, os, signal, subprocess, sys, threading
from stroboscope._core import _native
from stroboscope.formats.samples import parse

heard = []
signal.signal(signal.SIGPROF, lambda *_: heard.append(1))
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
_native.samples_open(file)
_native.watch_start(50_000_000)
def wait():
    while _native.watch_wait(0.1):
        pass
threading.Thread(target=wait).start()
child = subprocess.Popen(["sleep", "0.6"], stdout=subprocess.PIPE)
ctypes.PyDLL(None).read(child.stdout.fileno(), ctypes.create_string_buffer(8), 8)
child.wait()
_native.watch_stop()
left = parse(os.pread(file, 1 << 20, 0))
print(len(left), len(heard), _native.info()["sigprof"])
"""


def test_somebody_elses_sigprof_is_left_alone(tmp_path: Path) -> None:
    """No signal is sent where the handler is not ours: nothing is left, and the
    owner hears nothing."""
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, str(tmp_path / "1.samples")],
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert done.stdout.split() == ["0", "0", "-1"], done.stderr
