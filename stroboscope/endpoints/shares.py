"""Which share links were opened: each stands for one capture, taken once on a host.

The capture itself lies with the others of the worker that took it; see `captures`. Who
that is stands in the run directory.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stroboscope._clock import SYSTEM, Clock
from stroboscope._greenlets import Log
from stroboscope._threads import Lock
from stroboscope.errors import FolderError
from stroboscope.workers.documents import Document
from stroboscope.workers.folder import Folder
from stroboscope.workers.totals import instance

_log = Log("stroboscope")

#: Links remembered until they end; beyond it the one opened first is forgotten.
SPENT_CAP = 4096


class Openings:
    """Ids of links whose capture was, or is being, taken. Safe from any thread.

    Where there is no folder, or it cannot be used, each worker counts for itself.
    """

    def __init__(self, clock: Clock = SYSTEM, folder: Folder | None = None) -> None:
        self._clock = clock
        #: id: whose capture it is, and the link's end
        self._host = None if folder is None else Document(folder, "links")
        self._lock = Lock()
        #: id: end in seconds since 1970; opened first, first
        self._spent: OrderedDict[str, float] = OrderedDict()
        self._taking: set[str] = set()

    def is_spent(self, name: str) -> bool:
        """Whether it was taken once, and so is not to be taken anew."""
        return name in self._spent

    def spend(self, name: str, expires_s: float) -> None:
        """Remember that it was taken, here and on the host."""
        self.claim(name, expires_s)
        with self._lock:
            self._spent[name] = expires_s
            now_s = self._clock.time_s()
            for other in [one for one, end_s in self._spent.items() if end_s <= now_s]:
                del self._spent[other]
            while len(self._spent) > SPENT_CAP:
                self._spent.popitem(last=False)

    @contextmanager
    def taking(self, name: str) -> Iterator[bool]:
        """Whether the caller is the one to take it while the block runs."""
        with self._lock:
            is_first = name not in self._taking and name not in self._spent
            if is_first:
                self._taking.add(name)
        try:
            yield is_first
        finally:
            if is_first:
                self._taking.discard(name)

    def claim(self, name: str, expires_s: float) -> str:
        """Whose capture the link's is: empty for ours, which it is if it was nobody's.

        Else an `instance`: a process id, a hyphen, and what no later process has.
        """
        if self._host is None:
            return ""
        try:
            with self._host.changing() as found:
                self._trim(found)
                holder = _holder(found.setdefault(name, [instance(), expires_s]))
        except FolderError as error:
            _log.warning("stroboscope: a link is opened for this worker: %s", error)
            return ""
        return "" if holder == instance() else holder

    def holder(self, name: str) -> str:
        """Who has claimed it; empty while nobody has."""
        try:
            found = {} if self._host is None else self._host.read()
        except FolderError:
            return ""
        return _holder(found[name]) if name in found else ""

    def unclaim(self, name: str) -> None:
        """It was not taken: whoever is asked next may."""
        if self._host is None or self.is_spent(name):
            return
        try:
            with self._host.changing() as found:
                if name in found and _holder(found[name]) == instance():
                    del found[name]
        except FolderError:  # then only this worker may
            pass

    def after_fork(self) -> None:
        """The child takes none, and no lock of the parent's is held in it."""
        self._lock = Lock()
        self._taking = set()

    def _trim(self, found: dict[str, Any]) -> None:
        now_s = self._clock.time_s()
        for name in [name for name, kept in found.items() if _end_s(kept) <= now_s]:
            del found[name]
        for name in [*found][: max(0, len(found) - SPENT_CAP + 1)]:
            del found[name]

    def __len__(self) -> int:
        return len(self._spent)


def _holder(kept: object) -> str:
    """What another version may have written is nobody's, and over."""
    return str(kept[0]) if isinstance(kept, list) and kept else ""


def _end_s(kept: object) -> float:
    end_s = kept[1] if isinstance(kept, list) and len(kept) > 1 else 0.0
    return float(end_s) if isinstance(end_s, (int, float)) else 0.0
