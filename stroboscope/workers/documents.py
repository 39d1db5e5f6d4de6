"""What all workers of a host agree on: a JSON object in the folder, changed one at a time.

Who reads sees the one before a change or the one after it; who changes holds a lock that
the kernel frees with its process.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stroboscope._core import engine
from stroboscope._greenlets import Log
from stroboscope.errors import FolderError
from stroboscope.workers.folder import Folder

_log = Log("stroboscope")
#: How long a change waits for another's, and how often it looks.
LOCK_SECONDS_CAP = 0.5
_STEP_S = 0.005


class Document:
    """One object. Methods raise FolderError when the folder cannot be used."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder = folder
        self._name = name
        self._seen: tuple[int, ...] = ()

    def changed(self) -> dict[str, Any] | None:
        """The object, if it is not the one last read here; empty where there is none."""
        mark = self._mark()
        if mark == self._seen:
            return None
        self._seen = mark
        return self.read()

    @contextmanager
    def changing(self) -> Iterator[dict[str, Any]]:
        """The object, to be changed by the block, and written when that ends well."""
        lock = locked(self._folder, f"{self._name}.lock")
        try:
            value = self.read()
            yield value
            self.put(value)
        finally:
            os.close(lock)

    def put(self, value: Mapping[str, Any]) -> None:
        """Another object in its place, whoever changes it at this moment."""
        self._folder.write(self._name, json.dumps(value).encode())

    def read(self) -> dict[str, Any]:
        """The object; empty where there is none, or none that can be read."""
        try:
            value = json.loads(self._folder.read(self._name) or b"{}")
        except (ValueError, RecursionError):
            _log.warning("stroboscope: %s in the run directory is no JSON", self._name)
            return {}
        return value if isinstance(value, dict) else {}

    def _mark(self) -> tuple[int, ...]:
        try:
            found = os.lstat(os.path.join(self._folder.path, self._name))
        except OSError:
            return (0,)
        return (found.st_ino, found.st_mtime_ns, found.st_size)


def locked(folder: Folder, name: str) -> int:
    """A descriptor that holds a lock; waits a moment for it. Raises: FolderError."""
    ends_s = time.monotonic() + LOCK_SECONDS_CAP
    while True:
        held = folder.lock(name)
        if held is not None:
            return held
        if time.monotonic() > ends_s:
            raise FolderError(
                f"{folder.path}/{name} is held by a worker that stands still"
            )
        engine.sleep(_STEP_S)
