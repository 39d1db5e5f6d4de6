"""The black box: a recorder's ring in a file that outlives its process.

`box-<pid>-<number>` in the service's folder, locked for as long as its process lives; a
process that ends in order removes it. One that is there and not locked is of a process
that was killed: whoever looks first takes it, keeps what the dead one was doing, and
removes it. Who is killed himself meanwhile leaves it to the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Protocol

from stroboscope._core import engine, recording
from stroboscope.errors import FolderError, RecordingFormatError
from stroboscope.formats.blocks import last_events
from stroboscope.formats.names import plain
from stroboscope.formats.timeline import Timeline

#: How often the stacks of threads are noted while something is recorded, and while
#: nothing is; how much of each: its leaf.
STACKS_EVERY_S, STACKS_REST_S = 0.5, 2.0
STACK_FRAMES = 16
#: Threads whose stacks are kept; see `_core/src/box.h`.
STACKS_CAP = 32
#: Boxes read in one go, the longest of them, and the events of each, the last: the
#: rest are only removed.
DEAD_CAP = 8
BOX_BYTES_CAP = 600 << 20
DEAD_EVENTS_CAP = 1 << 18
#: From when a box is there to when it is locked and has its length, at most.
_MAKES_S = 60.0
_NAME = re.compile(r"box-([1-9][0-9]{0,9})-[0-9a-f]{12}")


class Folder(Protocol):
    """What a box needs of the service's folder; all of it raises FolderError."""

    def names(self) -> list[str]:
        """The files in it."""

    def open(self, name: str, flags: int = ...) -> int:
        """A descriptor of a file."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""


class Box:
    """The box of this process. Raises: FolderError, OSError (such as a full disk)."""

    def __init__(self, folder: Folder, events: int, service: str) -> None:
        self._folder = folder
        self._name = f"box-{os.getpid()}-{secrets.token_hex(6)}"
        self._file = folder.open(self._name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._watches = False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._file).st_nlink == 0:  # taken for a dead one's
                raise FolderError("the black box was removed as it was made")
            recording.trace_open(self._file, events, service)
        except BaseException:
            self.remove()
            raise

    def watch(self) -> None:
        """Note the stacks of all threads now and then, while something records."""
        if not self._watches:
            self._watches = True
            engine.start_thread(self._note_stacks)

    def leave(self) -> None:
        """In a forked child: the box is its parent's, and so is the lock."""
        self._watches = False
        os.close(self._file)

    def unlink(self) -> None:
        """Nobody finds the file from now on; it is written to as before."""
        with contextlib.suppress(FolderError):
            self._folder.remove(self._name)

    def remove(self) -> None:
        """Remove the file. Raises nothing."""
        self._watches = False
        self.unlink()
        os.close(self._file)

    def _note_stacks(self) -> None:
        bank, events, pause_s = 0, -1, STACKS_EVERY_S
        while self._watches and recording.trace_wanted():
            # What stands still between two events is soon known; to look is what a
            # worker at rest pays most for.
            before, events = events, recording.trace_info().get("events", 0)
            pause_s = min(2 * pause_s, STACKS_REST_S)
            if events != before:
                pause_s = STACKS_EVERY_S
            own = engine.own_threads()
            frames = sys._current_frames()
            idents = [ident for ident in frames if ident not in own]
            for row, ident in enumerate(idents[:STACKS_CAP]):
                text = f"{_thread_name(ident)} ({ident:x})\n{stack_text(frames[ident])}"
                text = text.encode("utf-8", "replace").decode()
                recording.trace_stack(bank * STACKS_CAP + row, text)
            bank = 1 - bank
            del frames
            engine.sleep(pause_s)
        self._watches = False


@dataclass(frozen=True, slots=True)
class Dead:
    """What a process left that was killed. `id` is the same for whoever finds it."""

    pid: int
    id: str
    timeline: Timeline
    #: Remove its box now, to make room; else it is removed when the next is asked for.
    remove: Callable[[], None]


def take_dead(folder: Folder) -> Iterator[Dead]:
    """The boxes of processes that were killed, newest first.

    Each is nobody else's until the next one is asked for, and then is gone. What is no
    readable box is removed. Blocks. Raises: FolderError.
    """
    found = [name for name in folder.names() if _NAME.fullmatch(name)]
    for count, name in enumerate(_newest_first(folder, found)):
        with contextlib.suppress(FolderError, OSError):  # somebody was faster
            yield from _taken(folder, name, is_read=count < DEAD_CAP)


def _newest_first(folder: Folder, names: list[str]) -> list[str]:
    ages = []
    for name in names:
        with contextlib.suppress(FolderError, OSError):
            file = folder.open(name, os.O_RDONLY)
            try:
                ages.append((os.fstat(file).st_mtime_ns, name))
            finally:
                os.close(file)
    return [name for _, name in sorted(ages, reverse=True)]


def _taken(folder: Folder, name: str, *, is_read: bool) -> Iterator[Dead]:
    """A box that nobody holds, which is gone afterwards."""
    file = folder.open(name, os.O_RDWR)
    with open(file, "rb", buffering=0) as box:
        made = os.fstat(file)
        if made.st_size == 0 and time.time() - made.st_mtime < _MAKES_S:
            return  # being made: to try its lock might cost its maker the file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        found = os.fstat(file)
        if found.st_nlink == 0:  # somebody had it before us
            return
        if is_read and found.st_size <= BOX_BYTES_CAP:
            with contextlib.suppress(RecordingFormatError):
                line = Timeline.read(last_events(box.readall(), DEAD_EVENTS_CAP))
                number = name.rpartition("-")[2].zfill(16)
                remove = partial(folder.remove, name)
                yield Dead(line.pid, f"{line.pid}-{number}", line, remove)
        folder.remove(name)


def stack_text(frame: FrameType | None) -> str:
    """The leaf-most frames, one a line: no values, as in every stack we show."""
    lines: list[str] = []
    while frame is not None and len(lines) < STACK_FRAMES:
        code = frame.f_code
        name = os.path.basename(code.co_filename)
        lines.append(f"{code.co_qualname} {name}:{frame.f_lineno}")
        frame = frame.f_back
    return "\n".join(lines)


def _thread_name(ident: int) -> str:
    thread = threading._active.get(ident)  # type: ignore[attr-defined]
    return plain(str(getattr(thread, "_name", "")), f"thread {ident}")
