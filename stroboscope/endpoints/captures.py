"""Kept answers of this process: few, bounded, gone when their time is over.

Every profile stays here for a while under the id it was answered with, so that a later
one can be compared with it. What was kept on purpose (`is_held`: the answer of a share
link, evidence of an incident) has room of its own, which nothing automatic can take.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

from stroboscope._clock import SYSTEM, Clock
from stroboscope._http.messages import Response
from stroboscope._threads import Lock

#: Profiles kept without being asked: how many, their bytes together, their seconds.
LOOSE_CAP = 64
LOOSE_BYTES_CAP = 16 << 20
AGE_S = 3600.0
#: The same for what is kept on purpose; each says itself when it ends.
HELD_CAP = 16
HELD_BYTES_CAP = 64 << 20
HEADER = "X-Stroboscope-Capture"


@dataclass(frozen=True, slots=True)
class Capture:
    """An answer with what it is; times are seconds since 1970.

    `kind` says what made it (profile, share, evidence); `endpoint` is the path below
    the mount, `owner` the id of the token that asked, `scope` what reading it takes.
    """

    id: str
    kind: str
    endpoint: str
    answer: Response
    owner: str = ""
    scope: str = "profile"
    parameters: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""
    is_held: bool = False
    taken_s: float = 0.0
    ends_s: float = 0.0
    #: Length of a body that is not here but in a file.
    file_bytes: int = 0

    @property
    def bytes(self) -> int:
        """Length of the answer's body."""
        return self.file_bytes or len(self.answer.body)


class Captures:
    """The captures of one process; a forked child begins with none. Never blocks."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._lock = Lock()
        #: Oldest first, and until when on the clock that nobody sets.
        self._kept: dict[str, Capture] = {}
        self._until_s: dict[str, float] = {}

    @staticmethod
    def new_id() -> str:
        """An id nobody can guess; it begins with the process that has the capture."""
        return f"{os.getpid()}-{secrets.token_hex(8)}"

    def keep(self, capture: Capture, age_s: float = AGE_S) -> bool:
        """Keep it for `age_s` seconds, dated now; whether there is room for it.

        Where it makes too many or too much, the oldest of whoever has most goes first:
        a scraper does not push out what an operator has taken.
        """
        dated = replace(capture, taken_s=self._clock.time_s())
        with self._lock:
            self._kept[dated.id] = dated
            self._until_s[dated.id] = self._now_s() + age_s
            self._trim()
            return dated.id in self._kept

    def get(self, name: str) -> Capture | None:
        """The capture of this id, or None when it is gone."""
        with self._lock:
            self._trim()
            found = self._kept.get(name)
            return None if found is None else self._ending(found)

    def all(self) -> list[Capture]:
        """Every capture, newest first."""
        with self._lock:
            self._trim()
            return [*map(self._ending, reversed(self._kept.values()))]

    def seen_by(self, scopes: Set[str]) -> list[Capture]:
        """Those that a token of these scopes may read, newest first."""
        return [one for one in self.all() if {one.scope, "admin"} & scopes]

    def drop(self, name: str) -> None:
        """Forget it, if it is there."""
        with self._lock:
            self._kept.pop(name, None)

    def after_fork(self) -> None:
        """The child has none of its parent's, and none of its locks."""
        self._lock = Lock()
        self._kept, self._until_s = {}, {}

    def __len__(self) -> int:
        return len(self._kept)

    def _ending(self, one: Capture) -> Capture:
        """With its end as the machine's clock has it now."""
        left_s = self._until_s[one.id] - self._now_s()
        return replace(one, ends_s=self._clock.time_s() + left_s)

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9

    def _trim(self) -> None:
        now_s = self._now_s()
        for name in [n for n in self._kept if self._until_s[n] <= now_s]:
            del self._kept[name]
        self._make_room(False, LOOSE_CAP, LOOSE_BYTES_CAP)
        self._make_room(True, HELD_CAP, HELD_BYTES_CAP)
        self._until_s = {name: self._until_s[name] for name in self._kept}

    def _make_room(self, is_held: bool, cap: int, bytes_cap: int) -> None:
        pool = [one for one in self._kept.values() if one.is_held is is_held]
        while len(pool) > cap or sum(one.bytes for one in pool) > bytes_cap:
            ((owner, _),) = Counter(one.owner for one in pool).most_common(1)
            victim = next(one for one in pool if one.owner == owner)
            pool.remove(victim)
            del self._kept[victim.id]
