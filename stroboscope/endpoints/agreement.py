"""What holds for all workers of a host: knobs in force, and what was revoked.

A change is made in the run directory, under a lock, and then here; the others see the new
file within half a second, and a new worker sees it before its first request. Where the
run directory cannot be used, a change holds in the process that made it, and says so.

Ends of overrides are moments of the monotonic clock, which all processes of a host share
and nobody can set; what was switched before the machine began anew is over.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from stroboscope._core import engine
from stroboscope.auth.revocation import Revocations
from stroboscope.errors import FolderError
from stroboscope.knobs import Knobs, Override
from stroboscope.workers.documents import Document
from stroboscope.workers.folder import Folder

_log = logging.getLogger("stroboscope")
#: For whom a change holds.
HOST, PROCESS = "all workers of this host", "this worker"
_STEP_S = 0.002


class Agreement:
    """Of one surface; from any thread. Nothing raises but what it says.

    Where it has no knobs, as the sidecar, only revocations hold there.
    """

    def __init__(
        self,
        knobs: Knobs,
        revocations: Revocations,
        folder: Folder | None,
        *,
        has_knobs: bool = True,
    ) -> None:
        self._knobs = knobs
        self._revocations = revocations
        self._boot = _boot()
        self._lock = threading.Lock()
        self._settings = Document(folder, "settings") if folder and has_knobs else None
        self._revoked = None if folder is None else Document(folder, "revoked")

    def adopt(self) -> None:
        """Let hold here what changed on the host since the last look. Cheap."""
        if self._revoked is None:
            return
        if not self._lock.acquire(blocking=False):
            return  # somebody looks at this moment
        try:
            if (found := self._revoked.changed()) is not None:
                self._adopt_revoked(found)
            if self._settings and (found := self._settings.changed()) is not None:
                self._adopt_settings(found)
        except FolderError:  # the listener says so
            pass
        finally:
            self._lock.release()

    def change(
        self, values: Mapping[str, Any], ttl_s: float | None, version: int | None
    ) -> str:
        """Switch knobs; for whom that holds. Raises: KnobError, KnobConflict."""
        is_done = False
        with self._alone():
            try:
                with _changing(self._settings) as found:
                    self._adopt_settings(found)
                    self._knobs.change(values, ttl_s, version)
                    is_done = True
                    found.update(self._described(found))
            except FolderError as error:
                _log.warning("stroboscope: settings hold in this worker: %s", error)
                if not is_done:
                    self._knobs.change(values, ttl_s, version)
                return PROCESS
        return PROCESS if self._settings is None else HOST

    def revoke(self, token_id: str) -> str:
        """Refuse one id; for whom that holds. Raises: KnobError when the list is full."""
        self._revocations.revoke(token_id)
        return self._publish_revoked()

    def revoke_before(self, moment_s: float) -> str:
        """Refuse everything issued before a moment; for whom that holds."""
        self._revocations.revoke_before(moment_s)
        return self._publish_revoked()

    def after_fork(self) -> None:
        """The child looks for itself."""
        self._lock = threading.Lock()

    def _publish_revoked(self) -> str:
        with self._alone():
            try:
                with _changing(self._revoked) as found:
                    self._adopt_revoked(found)
                    found["ids"] = self._revocations.ids()
                    found["not_before"] = self._revocations.not_before_s
            except FolderError as error:
                _log.warning("stroboscope: revoked in this worker only: %s", error)
                return PROCESS
        return PROCESS if self._revoked is None else HOST

    def _adopt_revoked(self, found: Mapping[str, Any]) -> None:
        try:
            ids = [str(one) for one in found.get("ids", ())]
            self._revocations.adopt(ids, float(found.get("not_before", 0.0)))
        except (TypeError, ValueError) as error:
            _log.warning("stroboscope: the host's revocations: %s", error)

    def _adopt_settings(self, found: Mapping[str, Any]) -> None:
        if found.get("boot") != self._boot:
            return  # nothing was switched since the machine began
        try:
            overrides = {
                name: Override(value, None if ends_s is None else float(ends_s))
                for name, (value, ends_s) in found["overrides"].items()
            }
            self._knobs.adopt(overrides, int(found["version"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            _log.warning("stroboscope: the host's settings: %r", error)

    def _described(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """With what another version of us has switched that we do not know."""
        known = {knob.name for knob in self._knobs}
        before = found.get("overrides") if found.get("boot") == self._boot else None
        before = before if isinstance(before, dict) else {}
        kept = {name: pair for name, pair in before.items() if name not in known}
        own = {
            name: [override.value, override.ends_s]
            for name, override in self._knobs.overrides().items()
        }
        return {
            "boot": self._boot,
            "version": self._knobs.version,
            "overrides": {**kept, **own},
        }

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # Not by waiting at the lock, which gevent may have patched.
        while not self._lock.acquire(blocking=False):
            engine.sleep(_STEP_S)
        try:
            yield
        finally:
            self._lock.release()


def _changing(
    document: Document | None,
) -> AbstractContextManager[dict[str, Any]]:
    return nullcontext({}) if document is None else document.changing()


def _boot() -> str:
    """The kernel's number for the time since the machine began."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
