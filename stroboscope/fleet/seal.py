"""Signatures of what stands in Redis, where more may write than hold our keys.

Every key signs, so that hosts agree while keys are rotated; one that we hold is enough to
believe. What is signed begins with the service, its env and what it is: nothing that was
signed for one place counts at another.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from stroboscope._greenlets import Log

_log = Log("stroboscope")
#: Keys that sign, the newest; bytes of a signature that are written.
KEYS_CAP, _BYTES = 4, 16
_DOMAIN = b"stroboscope/fleet/v1"
#: The longest signature.
SEAL_CAP = KEYS_CAP * (8 + 1 + 2 * _BYTES + 1)


class Seal:
    """Of one service and env. Safe from any thread."""

    def __init__(self, keys: Sequence[str], scope: str) -> None:
        self._scope = scope
        derived = [_mac(key.encode(), _DOMAIN) for key in reversed(keys)]
        #: By a name that says nothing of the key, newest first.
        self._keys = {_mac(one, b"name").hex()[:8]: one for one in derived}
        #: Documents that were ignored, for nobody who holds our keys has signed them.
        self.refused = 0
        self._last = ""

    def sign(self, *parts: str) -> str:
        """`name:signature` of each key, with commas between."""
        newest = [*self._keys.items()][:KEYS_CAP]
        return ",".join(f"{name}:{self._of(key, parts)}" for name, key in newest)

    def holds(self, signature: str, *parts: str) -> bool:
        """Whether somebody with one of our keys has signed these; says so if not."""
        for one in signature[:SEAL_CAP].split(","):
            name, _, found = one.partition(":")
            key = self._keys.get(name)
            if key is not None and hmac.compare_digest(
                found.encode(), self._of(key, parts).encode()
            ):
                return True
        self._refuse(parts[0], repr((signature, parts)))
        return False

    def _of(self, key: bytes, parts: Sequence[str]) -> str:
        # Each with its length: no two lists of parts are the same bytes.
        whole = b"".join(
            b"%d:%b" % (len(raw), raw)
            for raw in (one.encode() for one in (self._scope, *parts))
        )
        return _mac(key, whole)[:_BYTES].hex()

    def _refuse(self, what: str, text: str) -> None:
        if text == self._last:  # as at the look before
            return
        if not self.refused:
            _log.warning(
                "stroboscope: Redis holds a %s that our keys have not signed: ignored;"
                " others are counted",
                what,
            )
        self._last = text
        self.refused += 1


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, hashlib.sha256)
