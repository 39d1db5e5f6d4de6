"""Query parameters. The first of duplicates wins: scrapers may send several."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable
from urllib.parse import parse_qs, parse_qsl, urlencode

#: What Go runs when `seconds` is absent, not a number, or not positive.
DEFAULT_SECONDS = 30.0
QUERY_CAP = 8192
#: More fields are refused like more characters.
FIELDS_CAP = 100
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?", re.ASCII)


def is_too_long(query: str) -> bool:
    """Whether it is more than anybody needs; then no parameter is read from it."""
    return len(query) > QUERY_CAP or query.count("&") >= FIELDS_CAP


def firsts(query: str, names: Iterable[str]) -> dict[str, str]:
    """The first value of each parameter that is there."""
    if not query or is_too_long(query):
        return {}
    found = parse_qs(query, keep_blank_values=True)
    return {name: found[name][0] for name in names if name in found}


def first(query: str, name: str) -> str | None:
    """The first value of a parameter, or None."""
    return firsts(query, (name,)).get(name)


def every(query: str, name: str) -> list[str]:
    """Every value of a parameter, in order."""
    if is_too_long(query):
        return []
    return parse_qs(query, keep_blank_values=True).get(name, [])


def without(query: str, names: Container[str]) -> str:
    """The query less these parameters."""
    pairs = parse_qsl(query, keep_blank_values=True)
    return urlencode([(name, value) for name, value in pairs if name not in names])


def asked(query: str, names: Iterable[str]) -> dict[str, str]:
    """Those of these parameters that were given, the first value of each."""
    found = {name: first(query, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def profile_seconds(query: str, cap_s: float) -> tuple[float, bool]:
    """Seconds to collect, and whether the cap cut them.

    Garbage, zero, negative and infinite all mean the default, as in Go.
    Source: net/http/pprof, Profile.
    """
    text = first(query, "seconds") or ""
    wanted = float(text) if _NUMBER.fullmatch(text) else DEFAULT_SECONDS
    if not math.isfinite(wanted) or wanted <= 0:
        wanted = DEFAULT_SECONDS
    return min(wanted, cap_s), wanted > cap_s


def snapshot_seconds(query: str, cap_s: float) -> tuple[float | None, bool]:
    """Seconds of a delta, None without one, and whether the cap cut them.

    Raises: ValueError with Go's text for anything but a positive number.
    """
    text = first(query, "seconds")
    if not text:
        return None, False
    wanted = float(text) if _NUMBER.fullmatch(text) else 0.0
    if wanted <= 0:
        raise ValueError('invalid value for "seconds" - must be a positive integer')
    return min(wanted, cap_s), wanted > cap_s


def exceeds(query: str, cap_s: float) -> str:
    """What to say of `seconds` that were asked for and are above the cap, or nothing."""
    text = first(query, "seconds") or ""
    wanted = float(text) if _NUMBER.fullmatch(text) else 0.0
    if wanted <= cap_s:
        return ""
    return f"seconds {wanted:g} exceeds max request duration of {cap_s:g}"


def seconds_of(query: str, name: str) -> float | None:
    """Seconds named by a parameter, None without one.

    Raises: ValueError for anything but a plain number.
    """
    text = first(query, name)
    if not text:
        return None
    if not _NUMBER.fullmatch(text):
        raise ValueError(f'invalid value for "{name}" - must be seconds')
    return float(text)
