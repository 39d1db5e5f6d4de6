"""The surface refuses alike, answers as Go does, and says what it cut."""

import asyncio
import base64
import logging
import os
import subprocess
import sys
from typing import Any
from urllib.parse import quote

import pytest
from asking import (
    KEY,
    SETTINGS,
    Ask,
    FakeClock,
    asgi_inner,
    ask_asgi,
    bearer,
    request,
    token,
    wsgi_inner,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from stroboscope._http.messages import Request
from stroboscope._http.parameters import profile_seconds
from stroboscope.auth.tokens import SCOPES, Tokens
from stroboscope.endpoints import Surface, profiles
from stroboscope.endpoints.routes import ROUTES
from stroboscope.formats.pprof_reader import decode
from stroboscope.settings import Settings


def test_h03_off_looks_absent(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    """Without a key the path is the application's own, and one log line says so."""
    with caplog.at_level(logging.WARNING):
        answer = ask("/debug/pprof/profile", settings=Settings())

    assert (answer.status, answer.body) == (404, b"the application's own")
    for method in ("GET", "POST", "HEAD"):
        mounted = ask("/debug/pprof/profile", {}, method, settings=Settings())
        bare = ask(
            "/debug/pprof/profile",
            {},
            method,
            app=asgi_inner if ask is ask_asgi else wsgi_inner,
        )
        assert (mounted.status, mounted.body) == (bare.status, bare.body)
        assert dict(mounted.headers) == dict(bare.headers)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        ask("/debug/", settings=Settings())
    assert caplog.text.count("STROBOSCOPE_KEYS is not set") == 1


@pytest.mark.parametrize(
    "path", ["/debug", "/debug/", "/debug/./x", "/%64ebug/", "/debug/;x", "/debug/no"]
)
def test_h04_every_path_below_the_mount_asks_first(ask: Ask, path: str) -> None:
    """A stranger cannot tell what exists."""
    assert ask(path).status == 401


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(max_size=40),
        st.text("/.%;:?#\\ ~@$&=+,\x00\n", max_size=12),
        st.sampled_from([path for route in ROUTES for path in route.paths]),
    ),
    st.sampled_from(
        ["/debug", "/debug/", "//debug/", "/DEBUG/", "/debug//", "/x/debug/"]
    ),
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "OPTIONS", "TRACE", "BREW"]),
)
def test_h04_no_address_tells_a_stranger_what_exists(
    below: str, mount: str, method: str
) -> None:
    """Ours and then 401 with the same bytes, or not ours and the application's."""
    path = mount + below
    answer = ANONYMOUS.answer(request(path, method=method))

    if ANONYMOUS.handles(path):
        assert (answer.status, answer.body) in (
            (401, b"unauthorized\n"),
            (429, b"too many failures\n"),
        )
    else:
        assert not path.startswith("/debug/")


ANONYMOUS = Surface(SETTINGS)


def test_h05_refusals_are_equal_whatever_the_cause(ask: Ask) -> None:
    """Missing, malformed, badly signed and expired look the same."""
    clock = FakeClock()
    expired = Tokens(SETTINGS, clock).mint(["profile"], 1)
    sent: list[dict[str, str]] = [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Digest x"},
        {"Authorization": "Basic !!!"},
        bearer("x.y.z"),
        bearer("x" * 20_000),
        bearer(expired),
        bearer(token()[:-1]),
    ]
    answers = [ask("/debug/pprof/profile", headers) for headers in sent]

    assert {a.status for a in answers} == {401}
    assert {a.body for a in answers} == {b"unauthorized\n"}
    for answer in answers:
        challenges = answer.headers.get("WWW-Authenticate")
        assert 'Bearer realm="stroboscope"' in challenges
        assert "no-store" in answer.headers["Cache-Control"]


ACTIONS = [
    (route.paths[0], method, action.scope)
    for route in ROUTES
    for method, action in route.actions.items()
]


@pytest.mark.parametrize("scope", sorted(SCOPES))
@pytest.mark.parametrize(("path", "method", "needed"), ACTIONS)
def test_h06_scopes_are_a_matrix(
    ask: Ask, scope: str, path: str, method: str, needed: str
) -> None:
    """A token opens what its scope names; admin opens all; the rest is 403."""
    headers = bearer(token(scope)) | {"Content-Type": "application/json"}
    answer = ask("/debug" + path + "?seconds=0.1", headers, method)

    if scope in (needed, "admin"):
        assert answer.status not in (401, 403)
    else:
        assert (answer.status, answer.body) == (403, b"insufficient_scope\n")


@pytest.mark.parametrize(
    "text",
    ["", "0", "-5", "x", "nan", "inf", "1e309", "\uff11", "1_0", "+5", " 5", "0x5"],
)
def test_h18_unusable_seconds_mean_thirty(text: str) -> None:
    """As in Go; 30 is then clamped to the cap like any other."""
    assert profile_seconds(f"seconds={text.replace('+', '%2B')}", 60) == (30.0, False)


@pytest.mark.parametrize(
    ("query", "seconds"),
    [("seconds=5", 5), ("seconds=0.5", 0.5), ("seconds=5&seconds=9", 5)],
)
def test_h18_seconds_are_read(query: str, seconds: float) -> None:
    """Integers, decimals, and the first of duplicates."""
    assert profile_seconds(query, 60) == (seconds, False)


def test_a_profile_is_what_pprof_expects(ask: Ask) -> None:
    """Bearer or Basic, Go's headers, a clamp that is said."""
    basic = base64.b64encode(f"x:{token()}".encode()).decode()
    for headers in (bearer(token()), {"Authorization": f"Basic {basic}"}):
        answer = ask("/debug/pprof/profile?seconds=600", headers)

        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["X-Stroboscope-Clamped"] == "seconds=0.2"
        disposition = answer.headers["Content-Disposition"]
        assert disposition == 'attachment; filename="profile"'
        assert decode(answer.body).duration_ns >= 2e8


def test_h35_unknown_profiles_reflect_nothing(ask: Ask) -> None:
    """A name with a line break or markup is just unknown."""
    for name in ("no", "a%0d%0ab", "%3Cscript%3E", '"x"'):
        answer = ask(f"/debug/pprof/{name}", bearer(token()))

        assert (answer.status, answer.body) == (404, b"Unknown profile\n")
        assert answer.headers["X-Go-Pprof"] == "1"


def test_h37_nothing_is_cached_or_compressed(ask: Ask) -> None:
    """Every answer says so, and that it is not to be sniffed or framed."""
    for headers in ({}, bearer(token("metrics"))):
        answer = ask("/debug/", headers)

        assert answer.headers["Cache-Control"] == "no-store, private"
        assert answer.headers["Content-Encoding"] == "identity"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "access-control-allow-origin" not in answer.headers


def test_h38_both_slash_forms_are_served(ask: Ask) -> None:
    """No redirects: Parca does not follow them."""
    headers = bearer(token("metrics", "profile"))

    for path in ("/debug", "/debug/", "/debug/pprof", "/debug/pprof/"):
        assert ask(path, headers).status == 200


def test_h45_errors_leak_nothing(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets a number, the log the traceback."""

    def fail(*args: object, **named: object) -> None:
        raise RuntimeError("hunter2")

    monkeypatch.setattr(profiles, "collect_cpu", fail)
    answer = ask("/debug/pprof/profile", bearer(token()))

    assert answer.status == 500
    assert answer.body.startswith(b"internal error (")
    assert "hunter2" in caplog.text


def test_h48_other_methods_are_refused(ask: Ask) -> None:
    """HEAD would run a profile in Go; here it is 405 with Allow."""
    for method in ("HEAD", "OPTIONS", "POST", "DELETE"):
        answer = ask("/debug/pprof/profile", bearer(token()), method)

        assert answer.status == 405
        assert answer.headers["Allow"] == "GET"


def test_h21_a_vanished_client_ends_its_profile() -> None:
    """Over ASGI a disconnect cancels the window within a quarter second."""
    settings = Settings(keys=(KEY,), service="shop")
    surface = Surface(settings)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/debug/pprof/profile",
        "query_string": b"seconds=30",
        "headers": [
            (b"host", b"127.0.0.1"),
            (b"authorization", f"Bearer {token()}".encode()),
        ],
    }

    async def receive() -> dict[str, object]:
        await asyncio.sleep(0.3)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    async def main() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await surface.asgi(scope, receive, send)
        return loop.time() - began

    assert asyncio.run(main()) < 0.3 + 0.25


def test_h01_importing_exposes_nothing() -> None:
    """All of the package in a bare application: its own 404, no thread, no signal."""
    code = """
import pkgutil, signal, threading, importlib, asyncio
import django.conf; django.conf.settings.configure()
import stroboscope
for found in pkgutil.walk_packages(stroboscope.__path__, "stroboscope."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
from starlette.applications import Starlette
from starlette.testclient import TestClient
client = TestClient(Starlette())
print(client.get("/debug/pprof/").status_code, threading.active_count())
print(signal.getsignal(signal.SIGPROF) == signal.SIG_DFL)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "STROBOSCOPE_KEYS": KEY},
    )

    assert done.stdout.split() == ["404", "1", "True"]


def test_h13_a_token_in_the_address_opens_nothing(ask: Ask) -> None:
    """A query is logged by every proxy, so a token there is not even looked at."""
    text = token()
    for path in (f"/debug/?token={text}", f"/debug/{text}", f"/debug/?auth={text}"):
        assert ask(path).status == 401


def test_h13_logs_hold_no_token(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever comes in a header, whole or in halves, right or wrong."""
    text = token()
    basic = base64.b64encode(f"x:{text}".encode()).decode()
    with caplog.at_level(logging.DEBUG):
        for header in (f"Bearer {text}", f"Basic {basic}", f"Bearer {text}x", text):
            answer = ask("/debug/pprof/profile", {"Authorization": header})
            assert answer.headers["Referrer-Policy"] == "no-referrer"

    for secret in (text, basic, text[: len(text) // 2], text[len(text) // 2 :], KEY):
        assert secret not in caplog.text


@pytest.mark.parametrize("payload", ["<script>x", '"><img src=x>', "'-alert(1)-'"])
def test_h36_nothing_sent_comes_back(ask: Ask, payload: str) -> None:
    """Pages and errors reflect neither path, query nor headers."""
    headers = bearer(token("metrics", "profile")) | {"Accept": f"text/html, {payload}"}
    quoted = quote(payload)
    for path in (f"/debug/?x={quoted}", f"/debug/{quoted}", f"/debug/pprof/{quoted}"):
        answer = ask(path, headers)

        assert payload.encode() not in answer.body
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_a_header_sent_twice_or_too_long_is_none(ask: Ask) -> None:
    """Two Authorization headers are a smuggler's; a huge one is not parsed."""
    settings = Settings(keys=(KEY,), service="shop")
    request = Request(
        method="GET",
        path="/debug/",
        query="",
        headers=(
            ("host", "127.0.0.1"),
            *(("authorization", f"Bearer {token()}"),) * 2,
        ),
        peer="",
    )

    assert Surface(settings).answer(request).status == 401
    assert ask("/debug/", bearer("x" * 70_000)).status == 401
    assert ask("/debug/?" + "x" * 9000, bearer(token("metrics"))).status == 414
