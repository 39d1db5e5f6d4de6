"""Profiles that count since a worker began: kept for when it is gone.

A total is written down before it is shown, now and then while it grows, and when its
worker ends: see `workers.totals`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from stroboscope._core import engine
from stroboscope._greenlets import Log
from stroboscope._http.messages import PROFILE, Response
from stroboscope._http.parameters import first
from stroboscope.endpoints.call import Call
from stroboscope.endpoints.collectors import COLLECTORS
from stroboscope.endpoints.desk import Desk
from stroboscope.errors import FolderError
from stroboscope.formats.pprof import encode, prune
from stroboscope.profiles.breath import Breath
from stroboscope.workers.totals import Total, Totals, instance

_log = Log("stroboscope")
#: Names a process for good, unlike its number.
INSTANCE = "X-Stroboscope-Instance"
#: The total that stands behind a profile that counts since its worker began.
_KINDS = {"allocs": "heap"} | {
    name: name for name in ("heap", "mutex", "block", "threadcreate")
}
#: Seconds between two writings of a total that nobody asks for, at least, and how many
#: times as long they are apart as one takes.
_APART_S, _APART_TIMES = 30.0, 1000.0


@dataclass(slots=True)
class Counted:
    """One request for a profile; `kind` is empty for all that do not count on."""

    call: Call
    kind: str
    totals: Totals | None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, call: Call, path: str, seconds: float) -> Counted:
        """What the request asks for; a difference, and text, is no total."""
        is_total = not seconds and first(call.request.query, "debug") in (None, "", "0")
        kind = _KINDS.get(path.removeprefix("/pprof/"), "") if is_total else ""
        return cls(call, kind, _totals(call.desk) if kind else None)

    def taken(self, handler: Callable[[Call], Response]) -> Response:
        """Our own part, written down before anybody sees it."""
        own = handler(self.call)
        if self.totals is None or own.status != 200 or own.content_type != PROFILE:
            return own
        try:
            self.totals.keep(self.kind, own.body)
        except FolderError as error:
            self.notes.append(f"not kept for when this worker is gone: {error}")
        return replace(own, headers=(*own.headers, (INSTANCE, instance())))

    def of_others(self, answered: Iterable[str]) -> list[Total]:
        """What those have counted who did not answer, and those who are gone."""
        members = self.call.desk.members
        if self.totals is None or members is None:
            return []
        known = [instance(), *answered]
        try:
            return self.totals.of_others(self.kind, known, members.is_alive, Breath())
        except FolderError as error:
            self.notes.append(f"without those that are gone: {error}")
            return []


class Keeper:
    """Writes totals down that nobody asks for. `look` often; `end` at the end."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._next_s = time.monotonic() + _APART_S
        self._runs = False

    def look(self) -> None:
        """Write them down if it is time, on another thread of ours."""
        if self._runs or time.monotonic() < self._next_s:
            return
        self._runs = True
        try:
            engine.start_thread(self._write)
        except RuntimeError:  # no thread to be had; the next look tries again
            self._runs = False

    def end(self) -> None:
        """The last writing. Raises nothing."""
        self._write()

    def after_fork(self) -> None:
        """The child counts anew."""
        self._runs = False

    def _write(self) -> None:
        began_ns = time.thread_time_ns()
        totals = _totals(self._desk)
        try:
            if totals is not None:
                for kind in dict.fromkeys(_KINDS.values()):
                    self._write_one(kind, totals)
        except FolderError:  # the listener says so
            pass
        except Exception as error:  # a thread of ours: nobody else would see it
            _log.error("stroboscope: totals", exc_info=error)
        finally:
            took_ns = time.thread_time_ns() - began_ns
            apart_s = max(_APART_S, _APART_TIMES * took_ns / 1e9)
            self._next_s = time.monotonic() + apart_s
            self._runs = False

    def _write_one(self, kind: str, totals: Totals) -> None:
        breathe = Breath()
        profile = COLLECTORS[kind](self._desk, True)
        if len(profile.samples):
            pruned = prune(profile, breathe=breathe)
            totals.keep(kind, encode(pruned, breathe))


def _totals(desk: Desk) -> Totals | None:
    """Where this process's are kept, unless it has no place among the others."""
    is_refused = desk.members is not None and desk.members.is_refused
    return None if is_refused else desk.totals
