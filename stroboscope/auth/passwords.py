"""One static user: a name and a hashed password, for tools that know only Basic.

scrypt, 16 MiB and some 50 ms a check; a check that succeeded is remembered under a key
of this process, so that a scraper pays it once. Source: RFC 7914.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets

from stroboscope.errors import SettingsError

_N, _R, _P = 2**14, 8, 1
_SCHEME = "scrypt"
PASSWORD_CAP = 1024


def hash_password(password: str) -> str:
    """`scrypt$<salt>$<hash>`, for the setting `password_hash`."""
    salt = secrets.token_bytes(16)
    digest = _scrypt(password, salt)
    return "$".join((_SCHEME, _text(salt), _text(digest)))


class StaticUser:
    """Checks a name and password. Raises SettingsError for a malformed hash."""

    def __init__(self, name: str, password_hash: str) -> None:
        try:
            scheme, salt, digest = password_hash.split("$")
            self._salt = base64.urlsafe_b64decode(salt)
            self._digest = base64.urlsafe_b64decode(digest)
        except (ValueError, binascii.Error):
            scheme = ""
        if scheme != _SCHEME:
            raise SettingsError("password_hash is none of `stroboscope password`")
        self.name = name
        self._key = secrets.token_bytes(32)
        self._known = b""

    def is_named(self, name: str) -> bool:
        """Whether this user is meant, in constant time."""
        return hmac.compare_digest(name.encode(), self.name.encode())

    def verify(self, password: str) -> bool:
        """Whether the password is right. Takes 50 ms the first time: not on a loop."""
        if len(password) > PASSWORD_CAP:
            return False
        mark = hmac.digest(self._key, password.encode("utf-8", "replace"), "sha256")
        if self._known and hmac.compare_digest(mark, self._known):
            return True
        if not hmac.compare_digest(_scrypt(password, self._salt), self._digest):
            return False
        self._known = mark
        return True


def _scrypt(password: str, salt: bytes) -> bytes:
    secret = password.encode("utf-8", "replace")
    return hashlib.scrypt(secret, salt=salt, n=_N, r=_R, p=_P, dklen=32)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode()
