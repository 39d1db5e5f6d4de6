"""The one exclusive capture of a host: a file's lock, and what stands in the file.

The kernel frees a dead holder's. One that stands still past its end and a grace loses it:
the file is replaced, and its lock is of a file that nobody finds any more.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass

from stroboscope.workers.documents import locked
from stroboscope.workers.folder import Folder

_NAME, _GUARD = "lease", "lease.lock"


@dataclass(frozen=True, slots=True)
class Held:
    """What somebody else holds, and until when on the host's monotonic clock."""

    kind: str
    ends_s: float


class HostLease:
    """Methods raise FolderError when the folder cannot be used."""

    def __init__(self, folder: Folder, grace_s: float) -> None:
        self._folder = folder
        self._grace_s = grace_s
        self._descriptors: set[int] = set()

    def take(self, kind: str, ends_s: float, now_s: float) -> int | Held:
        """What `free` takes, or who holds it. Blocks for half a second at most."""
        guard = locked(self._folder, _GUARD)
        try:
            held = self._folder.lock(_NAME)
            if held is None:
                found = self._found()
                if found is None:  # it could not write: the kernel frees it
                    return Held("capture", now_s)
                if now_s < found.ends_s + self._grace_s:
                    return found
                self._folder.remove(_NAME)  # its holder stands still
                held = self._folder.lock(_NAME)
                if held is None:
                    return found
            self._descriptors.add(held)
            text = json.dumps({"kind": kind, "ends_s": ends_s}).encode()
            with contextlib.suppress(OSError):  # full: held all the same
                os.ftruncate(held, 0)
                os.pwrite(held, text, 0)
            return held
        finally:
            os.close(guard)

    def free(self, held: int) -> None:
        """Let the next one have it."""
        if held in self._descriptors:
            self._descriptors.discard(held)
            os.close(held)

    def current(self) -> Held | None:
        """Who holds it now, this process or another."""
        return self._found() if self._folder.is_locked(_NAME) else None

    def after_fork(self) -> None:
        """The lock is the parent's alone."""
        descriptors, self._descriptors = self._descriptors, set()
        for held in descriptors:
            os.close(held)

    def _found(self) -> Held | None:
        try:
            value = json.loads(self._folder.read(_NAME) or b"")
            return Held(str(value["kind"]), float(value["ends_s"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
