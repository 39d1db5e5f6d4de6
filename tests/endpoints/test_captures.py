"""Every profile is kept for a while, in bounds, for those who may read it."""

import json
import os
from typing import Any

import pytest
from asking import (
    SETTINGS,
    Ask,
    FakeClock,
    asgi_inner,
    ask_asgi,
    bearer,
    token,
    wsgi_inner,
)

from stroboscope._http.messages import Response
from stroboscope.endpoints import captures as kept_in
from stroboscope.endpoints.captures import Capture, Captures
from stroboscope.integrations import asgi, wsgi

HEADER = "X-Stroboscope-Capture"


def app_for(ask: Ask) -> Any:
    if ask is ask_asgi:
        return asgi.Stroboscope(asgi_inner, SETTINGS)
    return wsgi.Stroboscope(wsgi_inner, SETTINGS)


def a_capture(number: int, owner: str = "a", size: int = 1, **named: Any) -> Capture:
    answer = Response(200, b"x" * size)
    return Capture(str(number), "profile", "/pprof/heap", answer, owner=owner, **named)


@pytest.mark.parametrize("name", ["profile?seconds=0.1", "goroutine", "heap?gc=1"])
def test_a_profile_is_given_out_again_as_it_was(ask: Ask, name: str) -> None:
    """Under the id its answer named; the listing says what it is."""
    app, mine = app_for(ask), bearer(token())
    first = ask(f"/debug/pprof/{name}", mine, app=app)
    number = first.headers[HEADER]
    again = ask(f"/debug/captures/{number}", mine, app=app)
    (listed,) = json.loads(ask("/debug/captures", mine, app=app).body)

    assert number.startswith(f"{os.getpid()}-")
    assert (again.status, again.body) == (200, first.body)
    assert again.headers["Content-Type"] == "application/octet-stream"
    assert listed["id"] == number
    assert listed["url"] == f"/debug/captures/{number}"
    assert listed["bytes"] == len(first.body)
    assert listed["endpoint"].startswith("/debug/pprof/")
    assert 3590 < listed["expires_in"] <= 3600
    assert "=".join(*listed["parameters"].items() or [("", "")]) in name + "="


def test_captures_are_shown_to_people(ask: Ask) -> None:
    """As a page where a browser asks, and on the index for those who may read them."""
    app, mine = app_for(ask), bearer(token("profile", "metrics"))
    number = ask("/debug/pprof/goroutine", mine, app=app).headers[HEADER]
    page = ask("/debug/captures", mine | {"Accept": "text/html,*/*"}, app=app)
    index = ask("/debug/", mine, app=app)
    other = ask("/debug/", bearer(token("metrics")), app=app)

    link = f'href="/debug/captures/{number}"'.encode()
    assert page.headers["Content-Type"].startswith("text/html")
    assert link in page.body
    assert link in index.body
    assert link not in other.body


def test_only_the_owner_and_an_admin_drop_a_capture(ask: Ask) -> None:
    """Another token of the same scope may read it, not drop it."""
    app, mine, other = app_for(ask), bearer(token()), bearer(token())
    numbers = [
        ask("/debug/pprof/goroutine?seconds=0.05", mine, app=app).headers[HEADER]
        for _ in range(2)
    ]
    paths = [f"/debug/captures/{number}" for number in numbers]

    assert ask(paths[0], other, app=app).status == 200
    assert ask(paths[0], other, "DELETE", app=app).status == 403
    assert ask(paths[0], mine, "DELETE", app=app).status == 200
    assert ask(paths[0], mine, app=app).status == 404
    assert ask(paths[0], mine, "DELETE", app=app).status == 404
    assert ask(paths[1], bearer(token("admin")), "DELETE", app=app).status == 200
    assert ask(paths[1], bearer(token("metrics")), app=app).status == 403


def test_a_capture_needs_the_scope_of_what_it_is(ask: Ask) -> None:
    """A kept trace is not read with a token for profiles, nor listed for it."""
    app = app_for(ask)
    app.surface.desk.captures.keep(a_capture(1, scope="trace"))
    app.surface.desk.captures.keep(a_capture(2))
    one, both = bearer(token()), bearer(token("profile", "trace"))

    assert ask("/debug/captures/1", one, app=app).status == 403
    assert ask("/debug/captures/1", both, app=app).status == 200
    assert [c["id"] for c in json.loads(ask("/debug/captures", one, app=app).body)] == [
        "2"
    ]


def test_secrets_in_a_query_are_not_kept(ask: Ask) -> None:
    """A capture names the parameters we know, no others."""
    app, mine = app_for(ask), bearer(token())
    ask("/debug/pprof/heap?gc=1&token=hunter2&x=y", mine, app=app)
    (listed,) = json.loads(ask("/debug/captures", mine, app=app).body)

    assert listed["parameters"] == {"gc": "1"}


def test_a_scraper_does_not_push_out_what_an_operator_took() -> None:
    """Whoever has most loses its oldest; the number of captures has a cap."""
    captures = Captures(FakeClock())
    captures.keep(a_capture(0, "operator"))
    for number in range(1, 1000):
        captures.keep(a_capture(number, "scraper"))

    assert len(captures) == kept_in.LOOSE_CAP
    assert captures.get("0") is not None
    assert captures.get("999") is not None
    assert captures.get("1") is None


def test_captures_have_a_cap_on_bytes() -> None:
    """Together they stay below it; one above it is not kept, and that is said."""
    captures = Captures(FakeClock())
    for number in range(5):
        assert captures.keep(a_capture(number, size=kept_in.LOOSE_BYTES_CAP // 3))

    assert [one.id for one in captures.all()] == ["4", "3", "2"]
    assert not captures.keep(a_capture(9, size=kept_in.LOOSE_BYTES_CAP + 1))


def test_captures_end_by_themselves() -> None:
    """After an hour, or after the time they were given."""
    clock = FakeClock()
    captures = Captures(clock)
    captures.keep(a_capture(1))
    captures.keep(a_capture(2, is_held=True), 60)

    clock.now_s += 59
    assert len(captures.all()) == 2
    clock.now_s += 1
    assert [one.id for one in captures.all()] == ["1"]
    clock.now_s += kept_in.AGE_S
    assert captures.all() == []


def test_what_is_kept_on_purpose_has_room_of_its_own() -> None:
    """No number of profiles pushes out a share link's answer, but a cap holds."""
    captures = Captures(FakeClock())
    captures.keep(a_capture(0, is_held=True))
    for number in range(1, 200):
        captures.keep(a_capture(number))
    assert captures.get("0") is not None
    for number in range(200, 300):
        captures.keep(a_capture(number, is_held=True))

    held = [one for one in captures.all() if one.is_held]
    assert len(held) == kept_in.HELD_CAP
    assert captures.get("0") is None


def test_a_forked_child_has_no_captures_of_its_parent() -> None:
    """What the parent took is the parent's to give."""
    captures = Captures()
    captures.keep(a_capture(1))
    captures.after_fork()

    assert captures.all() == []


@pytest.mark.parametrize("name", ["%2e%2e%2f", "a/b", "%00", "x" * 129, "", "{id}"])
def test_no_odd_name_is_a_capture(ask: Ask, name: str) -> None:
    """Whatever stands in the path, the answer is 404 and reflects nothing."""
    answer = ask(f"/debug/captures/{name}", bearer(token()), app=app_for(ask))

    assert answer.status == 404
    assert answer.body in (b"Unknown\n", b"Unknown capture\n")
