"""Signed, scoped, expiring tokens and share links; the only file that knows itsdangerous.

HMAC-SHA256 always: no algorithm is read from a token, and itsdangerous' SHA-1 default
is never used. One salt per purpose, so that nothing signed elsewhere with the same key
is a token, and a share link is none either.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from itsdangerous import BadData, Signer, URLSafeSerializer

from stroboscope._clock import SYSTEM, Clock, boot_id
from stroboscope.auth.keys import check_keys
from stroboscope.auth.revocation import LINK_MARK, Revocations
from stroboscope.errors import SettingsError, Unauthenticated
from stroboscope.settings import SCOPES, Settings

SALT = "stroboscope/token/v1"
SHARE_SALT = "stroboscope/share/v1"
PEER_SALT = "stroboscope/peer/v1"
#: What one worker shows another lives no longer, and never leaves the host.
PEER_TTL_S = 60
#: Signed with as many keys, newest first: while keys rotate, workers share one at least.
PEER_KEYS_CAP = 4
#: A token's longest life; a scraper's sidecar renews it.
TTL_CAP_S = 366 * 86400
#: A share link's longest life: it stands in histories and proxy logs.
SHARE_TTL_CAP_S = 15 * 60
SKEW_S = 60
TEXT_CAP = 4096
#: Characters of its maker in a link's id: a certificate's is the longest there is.
OWNER_CAP = 100


@dataclass(frozen=True, slots=True)
class Grant:
    """What a caller may do, and how the audit log names it."""

    scopes: frozenset[str]
    token_id: str
    expires_s: float


@dataclass(frozen=True, slots=True)
class Share:
    """What a share link opens: a path below the mount with its query, GET only."""

    target: str
    token_id: str
    expires_s: float


class Tokens:
    """Mints and verifies. Raises WeakKeyError for keys that could be guessed."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock = SYSTEM,
        revocations: Revocations | None = None,
    ) -> None:
        if not settings.keys:
            raise SettingsError("no signing key; make one with `stroboscope key`")
        check_keys(settings.keys)
        self._settings = settings
        self._clock = clock
        if revocations is None:
            revocations = Revocations(settings.revoked, settings.not_before)
        self._revocations = revocations
        self._tokens = _serializer(settings.keys, SALT)
        self._shares = _serializer(settings.keys, SHARE_SALT)
        self._peers = _serializer(settings.keys, PEER_SALT)

    def mint(self, scopes: Iterable[str], ttl_s: float, host: str = "") -> str:
        """A token of these scopes, good on one host only where `host` is given.

        Raises: SettingsError for an unknown scope or a life out of range.
        """
        wanted = sorted(set(scopes))
        if not wanted or not SCOPES.issuperset(wanted):
            raise SettingsError(f"scopes {wanted}; allowed: {sorted(SCOPES)}")
        if not 0 < ttl_s <= TTL_CAP_S:
            raise SettingsError(f"ttl is {ttl_s} s; allowed: 1 s to 366 days")
        payload = self._claims(ttl_s) | {"scope": wanted}
        if host:
            payload["host"] = host
        return str(self._tokens.dumps(payload))

    def verify(self, text: str) -> Grant:
        """What the token grants. Raises: Unauthenticated, whose cause is for the log."""
        payload = self._loads(self._tokens, text, TTL_CAP_S)
        if payload.get("host") not in (None, socket.gethostname()):
            raise Unauthenticated("another host")
        scopes = payload.get("scope")
        if not isinstance(scopes, list):
            raise Unauthenticated("no scopes")
        known = SCOPES.intersection(s for s in scopes if isinstance(s, str))
        return Grant(known, payload["jti"], float(payload["exp"]))

    def mint_share(
        self, target: str, ttl_s: float, owner: str = ""
    ) -> tuple[str, Share]:
        """The text of a share link and what it opens.

        Its id begins with that of the token it was made with, `owner`: so the audit
        log says whose it is, and it is revoked with that token.
        Raises: SettingsError for a life above 15 minutes.
        """
        if not 0 < ttl_s <= SHARE_TTL_CAP_S:
            raise SettingsError(f"ttl is {ttl_s} s; allowed: 1 s to 15 minutes")
        payload = self._claims(ttl_s) | {"target": target}
        payload["jti"] = f"{owner:.{OWNER_CAP}}{LINK_MARK}{payload['jti']}"
        text = str(self._shares.dumps(payload))
        return text, Share(target, payload["jti"], float(payload["exp"]))

    def verify_share(self, text: str) -> Share:
        """What the link opens. Raises: Unauthenticated."""
        payload = self._loads(self._shares, text, SHARE_TTL_CAP_S)
        target = payload.get("target")
        if not isinstance(target, str):
            raise Unauthenticated("no target")
        return Share(target, payload["jti"], float(payload["exp"]))

    def mint_peer(self, grant: Grant) -> str:
        """The same grant for another worker of this service on this host.

        The same claims, signed with each of our keys.
        """
        payload = self._claims(PEER_TTL_S) | {
            "scope": sorted(grant.scopes),
            "host": socket.gethostname(),
            "boot": boot_id(),
            "for": grant.token_id,
            "until": grant.expires_s,
        }
        newest = self._settings.keys[: -PEER_KEYS_CAP - 1 : -1]
        return ",".join(
            str(_serializer((key,), PEER_SALT).dumps(payload)) for key in newest
        )

    def verify_peer(self, text: str) -> Grant:
        """What the other worker's caller was granted. Raises: Unauthenticated."""
        payload = self._claimed(text)
        scopes, named = payload.get("scope"), payload.get("for")
        # Containers of one machine have names of their own.
        boot = payload.get("boot")
        is_here = (
            boot == boot_id() if boot else payload.get("host") == socket.gethostname()
        )
        if not is_here:
            raise Unauthenticated("another host")
        if not isinstance(scopes, list) or not isinstance(named, str):
            raise Unauthenticated("no scopes")
        until_s = payload.get("until", payload["exp"])
        if not isinstance(until_s, (int, float)):
            raise Unauthenticated("no end")
        return Grant(SCOPES.intersection(scopes), named, float(until_s))

    def _claimed(self, text: str) -> dict[str, Any]:
        signed = text.split(",")[:PEER_KEYS_CAP]
        for one in signed[:-1]:
            try:
                return self._loads(self._peers, one, PEER_TTL_S)
            except Unauthenticated:
                continue
        return self._loads(self._peers, signed[-1], PEER_TTL_S)

    def _claims(self, ttl_s: float) -> dict[str, Any]:
        now = self._clock.time_s()
        claims: dict[str, Any] = {
            "aud": self._settings.service,
            "iat": int(now),
            "exp": int(now + ttl_s),
            "jti": secrets.token_hex(8),
        }
        if self._settings.env:
            claims["env"] = self._settings.env
        return claims

    def _loads(
        self, serializer: URLSafeSerializer, text: str, cap_s: float
    ) -> dict[str, Any]:
        """The payload of what was signed here, for us, for now."""
        if len(text) > TEXT_CAP:
            raise Unauthenticated("token too long")
        try:
            payload = serializer.loads(text)
        except BadData as error:
            raise Unauthenticated(type(error).__name__) from None
        if (
            not isinstance(payload, dict)
            or payload.get("aud") != self._settings.service
        ):
            raise Unauthenticated("another audience")
        if payload.get("env", "") != self._settings.env:
            raise Unauthenticated("another environment")
        issued, expires = payload.get("iat"), payload.get("exp")
        if not isinstance(issued, int) or not isinstance(expires, int):
            raise Unauthenticated("no expiry")
        now = self._clock.time_s()
        if issued > now + SKEW_S:
            raise Unauthenticated("issued in the future")
        if expires <= now or expires - issued > cap_s:
            raise Unauthenticated("expired")
        payload["jti"] = str(payload.get("jti", ""))
        if self._revocations.covers(payload["jti"], issued):
            raise Unauthenticated("revoked")
        return payload


def _serializer(keys: tuple[str, ...], salt: str) -> URLSafeSerializer:
    return URLSafeSerializer(
        list(keys),
        salt=salt,
        signer=Signer,
        signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"},
    )
