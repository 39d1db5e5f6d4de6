"""What every thread of this process is doing, on into C, as py-spy sees it from outside.

py-spy is another program, from the extra `native`: it stops this process, reads the
stacks of all threads and lets it go on. Linux wants our leave for that, which is given
to this one child and taken back. Nothing but names of places comes out of it. Blocks;
belongs on a thread of ours.
"""

from __future__ import annotations

import ctypes
import json
import os
import posix
import re
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from stroboscope._core import engine
from stroboscope._threads import ident
from stroboscope.errors import EngineUnavailable
from stroboscope.formats.names import plain

#: How long it may take, and how much it may say.
SECONDS_CAP = 6.0
BYTES_CAP = 16 << 20
DEPTH_CAP = 512
#: Yama's leave to be traced by one process. Source: Linux, include/uapi/linux/prctl.h.
_PR_SET_PTRACER = 0x59616D61
#: A shell around py-spy that waits for our leave. While we stand still we cannot end a
#: py-spy that hangs, and one that is killed may leave us stopped: the shell sees to both.
_AROUND = """
read -r go || exit 1
"$@" & child=$!
(sleep 5; kill -KILL $child) </dev/null >/dev/null 2>&1 & watch=$!
wait $child; status=$?
kill $watch
kill -CONT $PPID
exit $status
"""
#: An address is no name, and tells where our libraries are.
_UNNAMED = re.compile(r"^0x[0-9a-f]+$")
_ENVIRON = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


@dataclass(frozen=True, slots=True)
class NativeStack:
    """A thread; `frames` are (function, file or library, line or 0), leaf first."""

    name: str
    is_active: bool
    has_gil: bool
    frames: tuple[tuple[str, str, int], ...]


def command() -> str:
    """Where py-spy is. Raises: EngineUnavailable with the reason there is none."""
    if sys.platform != "linux":
        raise EngineUnavailable("native frames need Linux")
    found = shutil.which("py-spy", path=sysconfig.get_path("scripts"))
    found = found or shutil.which("py-spy")
    if found is None:
        raise EngineUnavailable("native frames need the extra stroboscope[native]")
    return found


def snapshot() -> list[NativeStack]:
    """All threads but ours. The process stands still for some milliseconds.

    Raises: EngineUnavailable with what py-spy or the kernel has against it.
    """
    status, out, failure = _run([command(), "dump", "--native", "--json"])
    if status:
        lines = failure.decode("utf-8", "replace").splitlines() or ["no reason"]
        raise EngineUnavailable(f"py-spy failed: {lines[0]:.200}")
    try:
        found = json.loads(out)
        own = engine.own_threads() | {ident()}
        return [_stack(one) for one in found if one.get("thread_id") not in own]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineUnavailable(f"py-spy said what we do not read: {error}") from error


def _stack(found: dict[str, Any]) -> NativeStack:
    frames = tuple(
        (_UNNAMED.sub("[unknown]", one["name"]), str(one["filename"]), int(one["line"]))
        for one in found["frames"][:DEPTH_CAP]
    )
    name = str(found.get("thread_name") or "")
    return NativeStack(
        plain(name, "thread"), bool(found["active"]), bool(found["owns_gil"]), frames
    )


def _run(arguments: list[str]) -> tuple[int, bytes, bytes]:
    """Exit status, output and errors of a child that may trace us.

    The module `posix` has the calls that gevent replaces in `os`: here a real thread
    waits for a real child. It gets no environment, which may hold secrets.
    """
    go_out, go_in = os.pipe()
    out, out_in = os.pipe()
    err, err_in = os.pipe()
    whole = ["/bin/sh", "-c", _AROUND, "sh", *arguments, "--pid", str(os.getpid())]
    ours, theirs = (go_in, out, err), (go_out, out_in, err_in)
    try:
        actions = [(os.POSIX_SPAWN_DUP2, fd, at) for at, fd in enumerate(theirs)]
        child = posix.posix_spawn(
            "/bin/sh", whole, _ENVIRON, file_actions=actions, setsigmask=[]
        )
    except OSError as error:
        for one in ours:
            os.close(one)
        raise EngineUnavailable(f"no child can be started: {error}") from error
    finally:
        for one in theirs:
            os.close(one)
    try:
        with _may_trace(child):
            posix.write(go_in, b"go\n")
            said = _read(out, err)
            status = _wait(child)
    finally:
        for one in ours:
            os.close(one)
    return status, *said


@contextmanager
def _may_trace(child: int) -> Iterator[None]:
    """Yama's leave for a child of ours, where there is Yama; refusals show later."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(child), 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(0), 0, 0, 0)


def _read(*ends: int) -> tuple[bytes, bytes]:
    """All that comes from two pipes, within the caps."""
    kept: dict[int, bytearray] = {end: bytearray() for end in ends}
    left = list(ends)
    for end in ends:
        os.set_blocking(end, False)
    until_s = time.monotonic() + SECONDS_CAP
    while left and time.monotonic() < until_s:
        for end in list(left):
            try:
                part = posix.read(end, 1 << 16)
            except BlockingIOError:
                continue
            kept[end] += part
            if not part or len(kept[end]) > BYTES_CAP:
                left.remove(end)
        engine.sleep(0.002)
    first, second = (bytes(one) for one in kept.values())
    return first, second


def _wait(child: int) -> int:
    """The exit status; a child that does not end is killed."""
    until_s = time.monotonic() + 1.0
    try:
        while True:
            found, status = posix.waitpid(child, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until_s:
                os.kill(child, signal.SIGKILL)
            engine.sleep(0.002)
    except ChildProcessError:  # somebody in this process waits for all children
        return 0
