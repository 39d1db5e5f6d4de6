"""The C calls of samples, followed by a process of our own: `stroboscope.unwinding`.

It is started for one capture and gets, while that lasts, copies of stacks through a
pipe: libraries' files are read and rules worked out where neither the event loop nor
the interpreter's lock waits for it, and where a damaged file harms nobody. One that is
late or dies costs the profile its native frames. Blocks; belongs on a thread of ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import posix
import signal
import sys
import sysconfig
import time

from stroboscope._core import engine
from stroboscope.errors import EngineUnavailable
from stroboscope.unwinding import messages
from stroboscope.unwinding.messages import ANSWER_CAP, Answer

#: After the end of a capture it may take so long to answer.
ANSWER_S_CAP = 1.5
#: Copies that wait to be written, beyond what the pipe holds; more are dropped.
BACKLOG_BYTES_CAP = 16 << 20
_PIPE_BYTES = 1 << 20
_PART = 1 << 16
_LOOK_S = 0.005
#: The package without its roof, which would bring the web and tracing libraries; and
#: pyelftools, wherever the application has it from. Nothing of the application's.
_PROGRAM = """
import sys, types
name, ours, theirs = sys.argv[1:]
roof = types.ModuleType("stroboscope")
roof.__path__ = [ours]
sys.modules["stroboscope"] = roof
sys.path.append(theirs)
from stroboscope.unwinding.child import main
main()
"""


def refusal() -> str:
    """Why there are no native frames here; empty where there are."""
    if sys.platform != "linux":
        return "native frames need Linux"
    if engine.info().kind != "native":
        return "native frames need the C engine"
    if not engine.machine():
        return "native frames need x86-64 or AArch64"
    if importlib.util.find_spec("elftools") is None:
        return "native frames need the extra stroboscope[native]"
    if not _interpreter():
        return "native frames need a Python that can be started"
    return ""


class Unwinding:
    """One process for one capture. Close it, always. Raises: EngineUnavailable."""

    def __init__(self) -> None:
        if reason := refusal():
            raise EngineUnavailable(reason)
        self._backlog = bytearray()
        self._failure = ""
        self._process, self._to, self._from = _started()
        self._send(messages.MAPS, _maps())

    def feed(self, copies: bytes) -> None:
        """Pass on what the engine has copied, as far as the pipe takes it now."""
        if copies and len(self._backlog) + len(copies) <= BACKLOG_BYTES_CAP:
            self._send(messages.COPIES, copies)
        else:
            self._write()

    def finish(self, seconds: float) -> Answer | str:
        """What it found, or why there is nothing. `seconds` is the time it has."""
        until_s = time.monotonic() + seconds
        self._send(messages.END, _maps())
        said = bytearray()
        while not self._failure:
            self._write()
            part = self._read()
            if part:
                said += part
                if len(said) > ANSWER_CAP:
                    return "it said too much"
            elif part is not None:
                return _answer(bytes(said))
            # Looked at last: a busy loop may keep us from the interpreter for seconds,
            # and what came meanwhile came in time.
            elif time.monotonic() > until_s:
                return f"it was not done {seconds:g} s after the capture"
            else:
                engine.sleep(_LOOK_S)
        return self._failure

    def close(self) -> None:
        """End the process and charge its CPU time to us. Idempotent."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # somebody waits for all
                _, _, used = posix.wait4(self._process, 0)
                engine.charge(int((used.ru_utime + used.ru_stime) * 1e9))
            os.close(self._to)
            os.close(self._from)
            self._process = 0
            self._backlog.clear()

    def _send(self, kind: int, body: bytes) -> None:
        self._backlog += messages.message(kind, body)
        self._write()

    def _write(self) -> None:
        """As much as the pipe takes without waiting."""
        done = 0
        try:
            while done < len(self._backlog) and not self._failure:
                done += posix.write(self._to, self._backlog[done : done + _PART])
        except BlockingIOError:
            pass
        except OSError as error:
            self._failure = f"it ended early: {error.strerror}"
        del self._backlog[:done]

    def _read(self) -> bytes | None:
        try:
            return posix.read(self._from, _PART)
        except BlockingIOError:
            return None


def _answer(said: bytes) -> Answer | str:
    try:
        return messages.unpacked(said)
    except ValueError:
        return "it ended early"


def _started() -> tuple[int, int, int]:
    """Its process, and our ends of the pipes to it and from it. It gets no environment.

    The module `posix` has the calls that gevent replaces in `os`.
    """
    theirs_in, to = os.pipe()
    from_, theirs_out = os.pipe()
    actions = [
        (os.POSIX_SPAWN_DUP2, theirs_in, 0),
        (os.POSIX_SPAWN_DUP2, theirs_out, 1),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    try:
        process = posix.posix_spawn(
            _interpreter(), _arguments(), {}, file_actions=actions, setsigmask=[]
        )
    except OSError as error:
        os.close(to)
        os.close(from_)
        raise EngineUnavailable(f"no child can be started: {error}") from error
    finally:
        os.close(theirs_in)
        os.close(theirs_out)
    for end in (to, from_):
        os.set_blocking(end, False)
    with contextlib.suppress(OSError):  # the system's limit may be lower
        for end in (to, from_):
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return process, to, from_


def _arguments() -> list[str]:
    found = importlib.util.find_spec("elftools")
    theirs = os.path.dirname(os.path.dirname(found.origin or "")) if found else ""
    ours = os.path.dirname(os.path.dirname(__file__))
    start = [_interpreter(), "-I", "-S", "-B", "-c", _PROGRAM]
    return [*start, engine.machine(), ours, theirs]


def _interpreter() -> str:
    """Our Python as a program: a server may be another that has it inside."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    bindir = str(sysconfig.get_config_var("BINDIR") or "")
    for path in (sys.executable, os.path.join(bindir, version)):
        is_python = os.path.basename(path or "").startswith("python")
        if is_python and os.access(path, os.X_OK):
            return path
    return ""


def _maps() -> bytes:
    parts = []
    descriptor = posix.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        while part := posix.read(descriptor, _PART):
            parts.append(part)
    finally:
        os.close(descriptor)
    return b"".join(parts)
