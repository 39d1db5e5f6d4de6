"""The one chokepoint: who may do what, decided before anything is routed.

Everything here but a password and the user's own function is cheap and touches no disk,
so it may run on the application's loop.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from stroboscope._clock import SYSTEM, Clock
from stroboscope._greenlets import among_greenlets
from stroboscope._http.messages import Request
from stroboscope.auth.origin import check_host, check_site
from stroboscope.auth.pace import Pace
from stroboscope.auth.passwords import StaticUser
from stroboscope.auth.revocation import Revocations, owner_of
from stroboscope.auth.throttle import Throttle
from stroboscope.auth.tokens import TEXT_CAP, Grant, Share, Tokens
from stroboscope.errors import Unauthenticated
from stroboscope.settings import SCOPES, Settings

#: How one worker shows another whom it asks for; on no other carrier than its socket.
PEER_SCHEME = "Stroboscope-Peer"
#: Below this path stand share links: their address is their secret.
SHARE_PATH = "/share/"
#: Of what the user's function gives back no more is read: it may have no end.
_SCOPES_READ = 64


@dataclass(frozen=True, slots=True)
class Admission:
    """A caller let through the gate.

    `share` is set for a link, which opens its one target. `pending` is the slow part
    of the decision, for a thread of ours: it returns the grant to use, or raises.
    `is_peer` when another worker asks, for a caller that it has let through.
    """

    grant: Grant
    share: Share | None = None
    pending: Callable[[], Grant] | None = None
    is_peer: bool = False


class Gate:
    """Decides for one surface. Raises WeakKeyError, SettingsError when made."""

    def __init__(self, settings: Settings, clock: Clock = SYSTEM) -> None:
        self.revocations = Revocations(settings.revoked, settings.not_before)
        self.tokens = Tokens(settings, clock, self.revocations)
        self.throttle = Throttle(clock)
        self.pace = Pace(clock)
        self._settings = settings
        self._hosts = frozenset(settings.hosts)
        self._user = (
            StaticUser(settings.user, settings.password_hash) if settings.user else None
        )

    def admit(self, request: Request, path: str) -> Admission:
        """Let a request through, or raise BadHost, CrossSite, Throttled, Unauthenticated.

        `path` is what follows the mount.
        """
        is_link = path.startswith(SHARE_PATH) and request.method == "GET"
        host = check_host(request.all("host"), self._hosts)
        check_site(
            host,
            request.all("origin"),
            request.all("sec-fetch-site"),
            request.all("sec-fetch-mode"),
            is_link=is_link,
        )
        try:
            admission = self._identified(request, path if is_link else "")
        except Unauthenticated:
            if not _is_peer(request):  # another copy of the service, with other keys
                self.fail(request.peer)
            raise
        if admission.is_peer:
            return admission
        self.pace.check(owner_of(admission.grant.token_id))
        if self._settings.authorize is None or admission.share is not None:
            return admission
        return replace(admission, pending=lambda: self._narrowed(request, admission))

    def after_fork(self) -> None:
        """The child counts for itself; no lock of the parent's is held in it."""
        self.throttle.after_fork()
        self.pace.after_fork()

    def fail(self, peer: str) -> None:
        """Count a failure. Raises: Throttled instead of the failure, when too many."""
        self.throttle.check(peer)
        self.throttle.failed(peer)

    def _identified(self, request: Request, link: str) -> Admission:
        if link:
            share = self.tokens.verify_share(link.removeprefix(SHARE_PATH))
            grant = Grant(frozenset(), share.token_id, share.expires_s)
            return Admission(grant, share)
        header = request.header("authorization")
        if header is None:
            return self._certified(request)
        if len(header) > 2 * TEXT_CAP:
            raise Unauthenticated("credentials too long")
        kind, _, text = header.partition(" ")
        if kind.lower() == "bearer":
            return Admission(self.tokens.verify(text.strip()))
        if _is_peer(request):
            return Admission(self.tokens.verify_peer(text), is_peer=True)
        if kind.lower() != "basic":
            raise Unauthenticated("unknown scheme")
        name, password = _basic(text)
        user = self._user
        if user is not None and user.is_named(name):
            return self._by_password(request, user, password)
        return Admission(self.tokens.verify(password))

    def _by_password(
        self, request: Request, user: StaticUser, password: str
    ) -> Admission:
        self.throttle.check(request.peer)  # a password, unlike a token, can be guessed
        grant = Grant(frozenset(self._settings.user_scopes), f"user:{user.name}", 0.0)

        def verify() -> Grant:
            if not user.verify(password):
                self.fail(request.peer)
                raise Unauthenticated("wrong password")
            return grant

        return Admission(grant, pending=verify)

    def _certified(self, request: Request) -> Admission:
        scopes = self._settings.certificates.get(request.certificate)
        if not request.certificate or scopes is None:
            raise Unauthenticated("no credentials")
        name = f"certificate:{request.certificate:.80}"
        return Admission(Grant(frozenset(scopes), name, 0.0))

    def _narrowed(self, request: Request, admission: Admission) -> Grant:
        grant = admission.pending() if admission.pending else admission.grant
        authorize = self._settings.authorize
        if authorize is None:
            return grant
        try:
            answer = among_greenlets(lambda: authorize(request.carrier, grant.scopes))
            kept = _scopes(answer, grant.scopes)
        except BaseException as error:  # in doubt, no; a cancelled task's is one, too
            raise Unauthenticated(f"authorize raised {type(error).__name__}") from error
        return replace(grant, scopes=kept)


def _is_peer(request: Request) -> bool:
    kind = (request.header("authorization") or "").partition(" ")[0]
    return request.is_local and kind == PEER_SCHEME


def _scopes(answer: Any, before: frozenset[str]) -> frozenset[str]:
    if isinstance(answer, bool):
        return before if answer else frozenset()
    if isinstance(answer, (str, bytes, Mapping)):
        raise TypeError("neither true or false nor scopes")
    return before & SCOPES & frozenset(islice(answer, _SCOPES_READ))


def _basic(text: str) -> tuple[str, str]:
    try:
        decoded = base64.b64decode(text.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise Unauthenticated("malformed Basic credentials") from error
    name, _, password = decoded.partition(":")
    return name, password
