"""What was signed and no longer counts: single ids, or everything before a moment."""

from __future__ import annotations

from collections.abc import Iterable

from stroboscope._threads import Lock
from stroboscope.errors import KnobError

#: Ids remembered. A full list refuses more: forgetting one would revive its token.
REVOKED_CAP = 4096
#: Stands in a link's id between that of its maker's token and its own.
LINK_MARK = "~"


def owner_of(token_id: str) -> str:
    """The id of the token a link was made with; any other id as it is."""
    return token_id.rpartition(LINK_MARK)[0] or token_id


class Revocations:
    """Ids of tokens and share links, and the epoch. Safe from any thread."""

    def __init__(self, ids: Iterable[str] = (), not_before_s: float = 0.0) -> None:
        self._lock = Lock()
        self._ids = set(ids)
        self.not_before_s = not_before_s

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> list[str]:
        """Every id that is refused."""
        with self._lock:
            return sorted(self._ids)

    def adopt(self, ids: Iterable[str], not_before_s: float) -> None:
        """Refuse these too, and what was issued before; nothing is taken back."""
        with self._lock:
            self._ids.update(ids)
            self.not_before_s = max(self.not_before_s, not_before_s)

    def covers(self, token_id: str, issued_s: float) -> bool:
        """Whether this token, or the one this link was made with, was revoked."""
        if issued_s < self.not_before_s or token_id in self._ids:
            return True
        return owner_of(token_id) in self._ids

    def revoke(self, token_id: str) -> None:
        """Refuse one id from now on. Raises: KnobError when the list is full."""
        with self._lock:
            if len(self._ids) >= REVOKED_CAP and token_id not in self._ids:
                raise KnobError(
                    f"{REVOKED_CAP} ids are revoked; revoke all before a moment instead"
                )
            self._ids.add(token_id)

    def revoke_before(self, moment_s: float) -> None:
        """Refuse everything issued before `moment_s`, seconds since 1970."""
        with self._lock:
            self.not_before_s = max(self.not_before_s, moment_s)
