"""What a browser may be made to send: foreign hosts and other sites' requests."""

import pytest
from asking import (
    Ask,
    ask_asgi,
    bearer,
    token,
)

from stroboscope.auth.origin import check_host, check_site
from stroboscope.errors import BadHost, CrossSite


@pytest.mark.parametrize(
    "host",
    [
        *("evil.test", "127.0.0.1.evil", "localhost.evil", "", "a b", "[::1", "x@y"),
        *("evil.test:80", "127.0.0.1/?#@", "localhost:x", "::1", "[evil]"),
    ],
)
def test_h14_foreign_hosts_are_refused(host: str) -> None:
    """Names that are not listed, and what is no host, before anything else."""
    with pytest.raises(BadHost):
        check_host([host], ())
    answer = ask_asgi("/debug/", bearer(token("metrics")) | {"Host": "evil.test"})
    assert (answer.status, answer.body) == (400, b"Invalid host header\n")


def test_h14_own_hosts_are_served() -> None:
    """Addresses, localhost and listed names, with or without port, once."""
    for host in ("127.0.0.1", "[::1]:8000", "localhost:1", "10.1.2.3", "Shop.test:80"):
        check_host([host], ("shop.test",))
    for doubled in ([], ["localhost", "localhost"]):
        with pytest.raises(BadHost):
            check_host(doubled, ())


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.test"},
        {"Origin": "null"},
    ],
)
def test_h15_browsers_cannot_be_made_to_ask(ask: Ask, headers: dict[str, str]) -> None:
    """What another site makes a browser send is refused, even with a token."""
    answer = ask("/debug/", bearer(token("metrics")) | headers)

    assert (answer.status, answer.body) == (403, b"cross-site request\n")


def test_h15_own_pages_and_followed_links_may() -> None:
    """The same origin may; a share link may be followed from anywhere."""
    same = {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}
    assert ask_asgi("/debug/", bearer(token("metrics")) | same).status == 200

    check_site("a", [], ["cross-site"], ["navigate"], is_link=True)
    with pytest.raises(CrossSite):
        check_site("a", [], ["cross-site"], ["no-cors"], is_link=True)
