"""Who the browser, if there is one, asks for: Host, Origin, Sec-Fetch-Site.

A name that resolves to us proves nothing (DNS rebinding), so names must be listed;
addresses need no list, for nobody can rebind them. Forwarded headers are never read.
Source: RFC 9110 section 7.2, Fetch Metadata Request Headers (W3C).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

from stroboscope.errors import BadHost, CrossSite

_HOST = re.compile(
    r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,255})(:[0-9]{1,5})?"
)
_LOCAL_NAMES = frozenset({"localhost"})
_FOREIGN = frozenset({"cross-site", "same-site"})


def check_host(values: list[str], allowed: Collection[str]) -> str:
    """The Host header, of which there must be one.

    Allowed are `localhost`, addresses, and the names in `allowed` (lower case).
    Raises: BadHost.
    """
    if len(values) != 1:
        raise BadHost(f"{len(values)} Host headers")
    found = _HOST.fullmatch(values[0])
    if found is None:
        raise BadHost("malformed Host")
    name = found["name"].lower()
    if name in _LOCAL_NAMES or name in allowed or _is_address(name):
        return values[0]
    raise BadHost(f"Host {name:.80} is not among the hosts in settings")


def check_site(
    host: str, origins: list[str], sites: list[str], modes: list[str], *, is_link: bool
) -> None:
    """Refuse what a browser sends on behalf of another site.

    `is_link` allows following a link from elsewhere, for addresses that are secrets
    themselves. Raises: CrossSite.
    """
    for origin in origins:
        if origin.partition("://")[2].lower() != host.lower():
            raise CrossSite("Origin is another site")
    if _FOREIGN.intersection(site.strip().lower() for site in sites):
        is_navigation = [mode.strip().lower() for mode in modes] == ["navigate"]
        if not (is_link and is_navigation):
            raise CrossSite("Sec-Fetch-Site is another site")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return ":" not in name or name.startswith("[")
