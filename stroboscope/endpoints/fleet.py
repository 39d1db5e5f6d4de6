"""The fleet as the endpoints see it: whether it is there, its lease, and who looks.

One worker of a host looks at Redis about once a second, and says in the run directory when
the next look is due and whether Redis was there; the others read that. Who was to look and
does not, because it is gone or stands still, is replaced by the next who notices.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stroboscope.errors import FleetError, FolderError
from stroboscope.fleet.clerk import RETRY_S, Clerk
from stroboscope.fleet.seal import Seal
from stroboscope.fleet.store import Ours, Store, Taken, new_nonce
from stroboscope.settings import Settings
from stroboscope.workers.documents import Document
from stroboscope.workers.folder import Folder

if TYPE_CHECKING:
    from stroboscope.endpoints.agreement import Agreement

HEADER = "X-Stroboscope-Fleet"
UNREACHABLE = "unreachable"
#: From one look to the next, and how much later another worker takes the turn.
LOOK_S, TURNOVER_S = 0.9, 0.6
ABANDONED_CAP = 16


@dataclass(slots=True)
class Standing:
    """What a lease is over the fleet; `said` goes into the header."""

    said: str = ""
    is_lost: bool = False


class Fleet:
    """Of one surface. Raises: SettingsError for a URL it cannot use."""

    def __init__(
        self, settings: Settings, folder: Folder | None, *, is_worker: bool = True
    ) -> None:
        #: Others, such as the sidecar, have no knobs to look for.
        self._is_worker = is_worker
        self._clerk = Clerk(settings.redis_url, self._turn)
        scope = (settings.service, settings.env)
        self.seal = Seal(settings.keys, "/".join(scope))
        #: For requests; and for what the clerk's own thread does.
        self.store = Store(self._clerk.ask, *scope, self.seal)
        self.store_here = Store(self._clerk.ask_here, *scope, self.seal)
        self._looks = None if folder is None else Document(folder, "fleet")
        self._host = None if folder is None else Document(folder, "host")
        self._own_host = secrets.token_hex(8)
        self._due_s = 0.0
        #: Leases to be freed when Redis is there again.
        self._abandoned: deque[Ours] = deque(maxlen=ABANDONED_CAP)
        #: Leases that were another's before their capture was done.
        self.leases_lost = 0
        #: Told of each look by this worker; set by whoever adopts.
        self.agreement: Agreement | None = None

    @property
    def failure(self) -> str:
        """Why it cannot be reached now, or nothing."""
        return self._clerk.failure

    @property
    def calls(self) -> int:
        """Commands sent to Redis by this worker."""
        return self._clerk.calls

    @property
    def failures(self) -> int:
        """How often it was not to be reached."""
        return self._clerk.failures

    def headers(self) -> tuple[tuple[str, str], ...]:
        """What an answer about knobs says of the fleet."""
        return ((HEADER, UNREACHABLE if self.failure else "reachable"),)

    def start(self) -> None:
        """Look from now on, in this process. Raises nothing."""
        self._clerk.start()

    def stop(self) -> None:
        """Look no more."""
        self._clerk.stop()

    def after_fork(self) -> None:
        """The child begins anew."""
        self._own_host = secrets.token_hex(8)
        self._due_s = 0.0
        self._abandoned.clear()
        self._clerk.after_fork()

    def take(self, kind: str, seconds: float, *, has_host: bool) -> Ours | Taken | None:
        """The lease for so long, who has it, or None where nobody knows."""
        host = self._host_id() if has_host else self._own_host
        nonce = new_nonce()
        try:
            return self.store.take(kind, seconds, host, nonce, has_host=has_host)
        except FleetError:
            # A Redis that stands still carries it out when it goes on.
            self._abandoned.append(Ours(0, nonce))
            return None

    def end(self, held: Ours, standing: Standing) -> None:
        """Free the lease, and say what it was to its end."""
        try:
            outcome = self.store.end(held)
        except FleetError:
            self._abandoned.append(held)
            standing.said = UNREACHABLE
            return
        word = {1: "held", 2: "expired"}.get(outcome, "lost")
        standing.said = f"{word}; fence={held.fence}"
        if word == "lost":
            standing.is_lost = True
            self.leases_lost += 1

    def _turn(self) -> None:
        now_s = time.monotonic()
        if self._abandoned and self._clerk.is_due():
            self._free_abandoned()
        if now_s < self._due_s or not self._is_ours(now_s):
            return
        if not self._clerk.is_due() or not (self._is_worker or self.failure):
            return
        before = self.failure
        if not self._is_worker:
            with contextlib.suppress(FleetError):
                self.store_here.look()  # whether it is back
            return
        self._say(now_s + LOOK_S, before)  # first: it may take a while
        try:
            marks = self.store_here.look()
            if self.agreement is not None:
                self.agreement.follow(*marks)
        except FleetError as error:
            self._say(time.monotonic() + RETRY_S, str(error))
        else:
            if before:
                self._say(time.monotonic() + LOOK_S, "")

    def _free_abandoned(self) -> None:
        try:
            while self._abandoned:
                self.store_here.end(self._abandoned[0])
                self._abandoned.popleft()
        except FleetError:  # another time
            pass

    def _is_ours(self, now_s: float) -> bool:
        """Whether to look is this worker's turn; if not, what the other one found."""
        said = self._said()
        try:
            due_s, at_s = float(said["due_s"]), float(said["at_s"])
            by, failure = int(said["process"]), str(said["failure"])[:200]
        except (KeyError, TypeError, ValueError):
            return True
        # Of before the machine began anew, or of one that is gone.
        is_stale = not now_s - TURNOVER_S < due_s < now_s + 2 * RETRY_S
        if (by == os.getpid() and self._is_worker) or is_stale:
            return True
        if failure != self.failure and at_s > self._clerk.failed_s:
            self._clerk.tell(failure)
        self._due_s = due_s  # no news before
        return False

    def _say(self, due_s: float, failure: str) -> None:
        self._due_s = due_s
        if self._looks is None:
            return
        try:
            self._looks.put(
                {
                    "at_s": time.monotonic(),
                    "due_s": due_s,
                    "failure": failure,
                    "process": os.getpid(),
                }
            )
        except FolderError:  # then each looks for itself
            pass

    def _said(self) -> dict[str, Any]:
        try:
            return {} if self._looks is None else self._looks.read()
        except FolderError:
            return {}

    def _host_id(self) -> str:
        """One for all who share the run directory; of this process without one."""
        if self._host is None:
            return self._own_host
        try:
            with self._host.changing() as found:
                if not isinstance(found.get("id"), str) or len(found["id"]) != 16:
                    found["id"] = self._own_host
                return str(found["id"])
        except FolderError:
            return self._own_host
