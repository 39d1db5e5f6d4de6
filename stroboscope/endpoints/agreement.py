"""What holds for all workers of a host, or of all hosts: knobs, and what was revoked.

A change is made in the run directory, under a lock, and then here; the others see the new
file within a second, and a new worker sees it before its first request. Where the
run directory cannot be used, a change holds in the process that made it, and says so.

Ends of overrides are moments of the monotonic clock, which all processes of a host share
and nobody can set; what was switched before the machine began anew is over.

With a fleet a change is made in Redis first, and the run directory follows. Where the two
differ, because Redis was gone or has lost what it had, the higher version holds, and at
the same version what stands in Redis; revocations are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stroboscope._clock import SYSTEM, Clock, boot_id
from stroboscope._greenlets import Log
from stroboscope._threads import Lock
from stroboscope.auth.revocation import Revocations
from stroboscope.endpoints.fleet import Fleet
from stroboscope.errors import FleetError, FolderError, KnobConflict
from stroboscope.fleet.store import Shared, Store, new_mark
from stroboscope.knobs import Knobs, Override
from stroboscope.workers.documents import Document
from stroboscope.workers.folder import Folder

_log = Log("stroboscope")
#: For whom a change holds.
FLEET = "all hosts of this service"
HOST, PROCESS = "all workers of this host", "this worker"
#: So often a change is made anew that others of the fleet came before.
_TRIES = 3

_Change = Callable[[dict[str, Any]], None]


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
        fleet: Fleet | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._knobs = knobs
        self._revocations = revocations
        self._fleet = fleet
        self._clock = clock
        self._boot = boot_id()
        self._lock = Lock()
        self._settings = _Shelf(folder if has_knobs else None, "settings")
        self._revoked = _Shelf(folder, "revoked")
        if fleet is not None:
            fleet.agreement = self

    def adopt(self) -> bool:
        """Let hold here what changed on the host since the last look. Cheap.

        False where somebody else looked at that moment, or before it.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if (found := self._revoked.changed()) is not None:
                self._adopt_revoked(found)
            if (found := self._settings.changed()) is not None:
                self._adopt_settings(found)
        finally:
            self._lock.release()
        return True

    def change(
        self, values: Mapping[str, Any], ttl_s: float | None, version: int | None
    ) -> str:
        """Switch knobs; for whom that holds. Raises: KnobError, KnobConflict."""

        def switch() -> None:
            self._knobs.change(values, ttl_s, version)

        with self._lock:
            if self._fleet is None:
                return self._switch_on_host(switch)
            try:
                return self._switch_in_fleet(self._fleet.store, switch)
            except FleetError:
                return self._switch_on_host(switch)

    def follow(self, settings_mark: str, revoked_mark: str) -> None:
        """Let hold on the host what changed in the fleet, and the other way about.

        For the thread that looks. Raises: FleetError.
        """
        if self._fleet is None or not self._lock.acquire(blocking=False):
            return  # a change is being made: the next look sees it
        store = self._fleet.store_here
        try:
            if settings_mark != self._mark(self._settings.read()):
                shared = store.read()
                if self._settle(shared):
                    self._write(store, shared, self._settings.read())
            if revoked_mark != self._revoked.read().get("mark"):
                self._join_revoked(store)
        finally:
            self._lock.release()

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
        self._lock = Lock()

    def _switch_on_host(self, switch: Callable[[], object]) -> str:
        is_done = False

        def change(found: dict[str, Any]) -> None:
            nonlocal is_done
            if not is_done:
                self._adopt_settings(found)
                switch()
                is_done = True
            found.pop("mark", None)  # it is another one from here
            found.update(self._described(found))

        return HOST if self._settings.change(change) else PROCESS

    def _switch_in_fleet(self, store: Store, switch: Callable[[], object]) -> str:
        shared = store.read()
        for _ in range(_TRIES):
            self._settle(shared)
            switch()
            draft = self._described(self._settings.read())
            try:
                is_written = self._write(store, shared, draft)
            except FleetError:  # it may stand there, or not: the next look sees
                return self._put(draft)
            if is_written:
                self._put(draft)
                return FLEET
            shared = store.read()
        self._settle(shared)
        raise KnobConflict("others change the settings at this moment")

    def _settle(self, shared: Shared) -> bool:
        """Let the later of the two hold on the host; whether Redis lacks it."""
        is_ahead = False

        def change(found: dict[str, Any]) -> None:
            nonlocal is_ahead
            mark = self._mark(found)
            is_ahead = mark != shared.mark and self._is_later(found, shared)
            if mark != shared.mark and not is_ahead and shared.version:
                found.clear()
                found.update(self._localised(shared))
            self._adopt_settings(found)

        self._settings.change(change)
        return is_ahead

    def _mark(self, found: Mapping[str, Any]) -> str | None:
        """Of a host's settings; None for those of before there was a fleet."""
        if found.get("boot") != self._boot or "version" not in found:
            return ""
        return str(found["mark"]) if "mark" in found else None

    def _is_later(self, found: Mapping[str, Any], shared: Shared) -> bool:
        mark = self._mark(found)
        if mark == "" or shared.is_foreign:  # only a change is put in its place
            return False
        if not shared.version:  # it has nothing, or nothing that can be read
            return True
        # What was switched before there was a fleet is no rival.
        try:
            return mark is not None and int(found["version"]) > shared.version
        except (TypeError, ValueError):
            return False

    def _write(self, store: Store, shared: Shared, draft: Mapping[str, Any]) -> bool:
        """Put a host's settings in Redis in place of those last read."""
        at_s, overrides = self._now_s(), {}
        for name, (value, ends_s) in draft["overrides"].items():
            left_s = None if ends_s is None else ends_s - at_s
            overrides[name] = (
                value,
                None if left_s is None else shared.now_ms + left_s * 1000,
            )
        mark = str(draft.get("mark") or new_mark(draft["version"]))
        new = Shared(mark, draft["version"], overrides, shared.now_ms)
        return store.write(shared.mark, mark, new)

    def _put(self, draft: dict[str, Any]) -> str:
        def change(found: dict[str, Any]) -> None:
            found.clear()
            found.update(draft)

        return HOST if self._settings.change(change) else PROCESS

    def _publish_revoked(self) -> str:
        def change(found: dict[str, Any]) -> None:
            self._adopt_revoked(found)
            found["ids"] = self._revocations.ids()
            found["not_before"] = self._revocations.not_before_s
            found.pop("mark", None)  # until it is known in the fleet, too

        with self._lock:
            held = HOST if self._revoked.change(change) else PROCESS
            if self._fleet is not None:
                try:
                    self._join_revoked(self._fleet.store)
                    held = FLEET
                except FleetError:  # the next look that finds Redis does it
                    pass
        return held

    def _join_revoked(self, store: Store) -> None:
        revocations = self._revocations
        self._adopt_revoked(self._revoked.read())
        mark, ids, not_before_s = store.revoke(
            revocations.ids(), revocations.not_before_s
        )
        revocations.adopt(ids, not_before_s)

        def change(found: dict[str, Any]) -> None:
            self._adopt_revoked(found)
            if not set(found.get("ids", ())) <= set(ids):
                mark_now = None  # another worker has revoked meanwhile
            else:
                mark_now = mark
            found["ids"] = revocations.ids()
            found["not_before"] = revocations.not_before_s
            found["mark"] = mark_now

        self._revoked.change(change)

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

    def _localised(self, shared: Shared) -> dict[str, Any]:
        """What stands in Redis, with the time that is left on this host's clock."""
        at_s, overrides = self._now_s(), {}
        for name, (value, ends_ms) in shared.overrides.items():
            left_ms = None if ends_ms is None else ends_ms - shared.now_ms
            overrides[name] = [
                value,
                None if left_ms is None else at_s + left_ms / 1000,
            ]
        return {
            "boot": self._boot,
            "version": shared.version,
            "overrides": overrides,
            "mark": shared.mark,
        }

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
        described = {
            "boot": self._boot,
            "version": self._knobs.version,
            "overrides": {**kept, **own},
        }
        if self._fleet is not None:
            described["mark"] = new_mark(self._knobs.version)
        return described

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9


class _Shelf:
    """A document of the host; where there is none, or it cannot be used, of the process."""

    def __init__(self, folder: Folder | None, name: str) -> None:
        self._document = None if folder is None else Document(folder, name)
        self._name = name
        self._own: dict[str, Any] = {}

    def changed(self) -> dict[str, Any] | None:
        """As `Document.changed`; None where it cannot be read, the listener says why."""
        try:
            return None if self._document is None else self._document.changed()
        except FolderError:
            return None

    def read(self) -> dict[str, Any]:
        """The object."""
        if self._document is not None:
            try:
                self._own = self._document.read()
            except FolderError:
                pass
        return self._own

    def change(self, change: _Change) -> bool:
        """Let `change` change it; whether it is the host's. Raises what that raises.

        It may be called twice: for the host's, and again where that cannot be written.
        """
        if self._document is not None:
            try:
                with self._document.changing() as found:
                    change(found)
            except FolderError as error:
                _log.warning(
                    "stroboscope: %s hold in this worker: %s", self._name, error
                )
            else:
                self._own = found
                return True
        change(self._own)
        return False
