"""Signing keys: made by us, or refused when they could be guessed."""

from __future__ import annotations

import re
import secrets
from collections import Counter
from math import log2

from stroboscope.errors import WeakKeyError

KEY_BYTES = 32
_BITS = KEY_BYTES * 8
#: Words that stand in defaults and tutorials; a key that holds one is no secret.
_KNOWN = re.compile(
    "by-dev|change-?me|default|django-insecure|example|insecure|passw|secret|your-"
)
_ALPHABETS = (
    (re.compile(r"[0-9]+"), log2(10)),
    (re.compile(r"[0-9a-f]+|[0-9A-F]+"), 4.0),
    (re.compile(r"[A-Za-z0-9_+/=-]+"), 6.0),
)
_PRINTABLE_BITS = 6.5


def generate_key() -> str:
    """A fresh key of 32 random bytes, safe in a URL and in an environment."""
    while True:
        key = secrets.token_urlsafe(KEY_BYTES)
        if not _KNOWN.search(key.lower()):
            return key


def check_keys(keys: tuple[str, ...]) -> None:
    """Raises: WeakKeyError, which names the key's place and never its text."""
    for place, key in enumerate(keys, 1):
        if _KNOWN.search(key.lower()):
            raise WeakKeyError(
                f"key {place} holds a well-known word; make one with `stroboscope key`"
            )
        if _entropy_bits(key) < _BITS - 2:  # 43 characters of base64 are 258 bits
            raise WeakKeyError(
                f"key {place} has less than {KEY_BYTES} bytes of entropy; make one "
                "with `stroboscope key`"
            )


def _entropy_bits(key: str) -> float:
    """An upper estimate: the alphabet it seems to be drawn from, less repetition."""
    if not key:
        return 0.0
    per_character = next(
        (bits for pattern, bits in _ALPHABETS if pattern.fullmatch(key)),
        _PRINTABLE_BITS,
    )
    counts = Counter(key)
    seen = -sum(n / len(key) * log2(n / len(key)) for n in counts.values())
    # A short random key repeats some characters by chance: hence three quarters.
    repeated = seen < 0.75 * min(per_character, log2(len(key)))
    return len(key) * (seen if repeated else per_character)
