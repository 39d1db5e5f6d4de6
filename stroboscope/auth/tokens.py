"""Signed, scoped, expiring tokens; the only file that knows itsdangerous.

HMAC-SHA256 always: no algorithm is read from a token, and itsdangerous' SHA-1 default
is never used. One salt per purpose, so that nothing signed elsewhere with the same key
is a token.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from itsdangerous import BadData, Signer, URLSafeSerializer

from stroboscope._clock import SYSTEM, Clock
from stroboscope.auth.keys import check_keys
from stroboscope.errors import SettingsError, Unauthenticated
from stroboscope.settings import Settings

SCOPES = frozenset({"metrics", "profile", "trace", "admin"})
SALT = "stroboscope/token/v1"
#: A token's longest life; a scraper's sidecar renews it.
TTL_CAP_S = 366 * 86400
SKEW_S = 60
TEXT_CAP = 4096


@dataclass(frozen=True, slots=True)
class Grant:
    """What a valid token allows, and how the audit log names it."""

    scopes: frozenset[str]
    token_id: str
    expires_s: float


class Tokens:
    """Mints and verifies. Raises WeakKeyError for keys that could be guessed."""

    def __init__(self, settings: Settings, clock: Clock = SYSTEM) -> None:
        if not settings.keys:
            raise SettingsError("no signing key; make one with `stroboscope key`")
        check_keys(settings.keys)
        self._audience = settings.service
        self._clock = clock
        self._serializer = URLSafeSerializer(
            list(settings.keys),
            salt=SALT,
            signer=Signer,
            signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"},
        )

    def mint(self, scopes: Iterable[str], ttl_s: float) -> str:
        """A token of these scopes.

        Raises: SettingsError for an unknown scope or a life out of range.
        """
        wanted = sorted(set(scopes))
        if not wanted or not SCOPES.issuperset(wanted):
            raise SettingsError(f"scopes {wanted}; allowed: {sorted(SCOPES)}")
        if not 0 < ttl_s <= TTL_CAP_S:
            raise SettingsError(f"ttl is {ttl_s} s; allowed: 1 s to 366 days")
        now = self._clock.time_s()
        payload = {
            "aud": self._audience,
            "scope": wanted,
            "iat": int(now),
            "exp": int(now + ttl_s),
            "jti": secrets.token_hex(8),
        }
        return str(self._serializer.dumps(payload))

    def verify(self, text: str) -> Grant:
        """What the token grants. Raises: Unauthenticated, whose cause is for the log."""
        if len(text) > TEXT_CAP:
            raise Unauthenticated("token too long")
        try:
            payload = self._serializer.loads(text)
        except BadData as error:
            raise Unauthenticated(type(error).__name__) from None
        return self._grant(payload)

    def _grant(self, payload: Any) -> Grant:
        if not isinstance(payload, dict) or payload.get("aud") != self._audience:
            raise Unauthenticated("another audience")
        issued, expires = payload.get("iat"), payload.get("exp")
        if not isinstance(issued, int) or not isinstance(expires, int):
            raise Unauthenticated("no expiry")
        now = self._clock.time_s()
        if issued > now + SKEW_S:
            raise Unauthenticated("issued in the future")
        if expires <= now or expires - issued > TTL_CAP_S:
            raise Unauthenticated("expired")
        scopes = payload.get("scope")
        if not isinstance(scopes, list):
            raise Unauthenticated("no scopes")
        known = SCOPES.intersection(s for s in scopes if isinstance(s, str))
        return Grant(known, str(payload.get("jti", "")), float(expires))
