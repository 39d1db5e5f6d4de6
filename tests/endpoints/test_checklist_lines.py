"""Lines of the checklist that no test of a row said aloud."""

import asyncio
import base64
import hashlib
import itertools
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from asking import (
    KEY,
    SETTINGS,
    Ask,
    FakeClock,
    admin,
    asgi_inner,
    ask_asgi,
    authorised,
    bearer,
    token,
)

from stroboscope.auth.tokens import Tokens
from stroboscope.endpoints import Surface
from stroboscope.endpoints.routes import ROUTES
from stroboscope.integrations import asgi
from stroboscope.settings import Settings

MUTATORS = [
    (method, path)
    for route in ROUTES
    for path in route.paths
    for method in route.actions
    if method != "GET" and path != "/pprof/symbol"
]
PAGES = [
    path
    for route in ROUTES
    for path in route.paths
    if "GET" in route.actions
    and any("html" in kind for kind in route.actions["GET"].kinds)
    and "{" not in path
] + ["/pprof/", "/pprof"]


@pytest.mark.parametrize(("method", "path"), MUTATORS)
def test_h16_what_changes_something_is_no_get(ask: Ask, method: str, path: str) -> None:
    """Where only changes are made, 405 names them; elsewhere GET tells and HEAD is 405."""
    allowed = next(route.actions for route in ROUTES if path in route.paths)
    for other in ("GET", "HEAD", "OPTIONS", "TRACE", "PATCH"):
        if other in allowed:
            continue
        answer = ask("/debug" + path, admin(), other)

        assert answer.status == 405
        assert method in answer.headers["Allow"].split(", ")


def test_h33_a_change_ends_in_a_quarter_of_an_hour_unless_it_is_said() -> None:
    """24 hours at most; for ever only by `none`."""
    app = asgi.Stroboscope(asgi_inner, SETTINGS)

    def put(**body: object) -> Any:
        sent = json.dumps({"cpu_hz": 50, **body}).encode()
        answer = ask_asgi("/debug/settings", admin(), "PUT", body=sent, app=app)
        return answer.status, json.loads(answer.body)["settings"]["cpu_hz"] if (
            answer.status == 200
        ) else None

    status, knob = put()
    assert status == 200
    assert 890 < knob["expires_in"] <= 900
    assert put(ttl="24h")[1]["expires_in"] > 86_390
    assert put(ttl="25h")[0] == 400
    assert put(ttl=0)[0] == 400
    assert put(ttl="none")[1]["expires_in"] is None
    assert put(cpu_hz=None)[1]["overridden"] is False


@pytest.mark.parametrize("path", PAGES)
def test_h36_a_page_has_the_one_style_its_policy_names(ask: Ask, path: str) -> None:
    """And nothing that runs or loads."""
    headers = bearer(token("admin")) | {"Accept": "text/html"}
    answer = ask("/debug" + path, headers)

    page = answer.body.decode()
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = answer.headers["Content-Security-Policy"]
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert not re.search(
        r"<(script|img|iframe|object|link|form|base)\b|\son\w+=|style=|javascript:",
        page,
        re.IGNORECASE,
    )


def test_h46_labels_of_metrics_name_nobody() -> None:
    """No token, peer, path or tenant; endpoints are those of the table."""
    surface = Surface(SETTINGS)
    text, peer = token("metrics", "profile"), "198.51.100.99"
    for path in ("/debug/labels", "/debug/pprof/hunter2", "/debug/stacks", "/debug/x"):
        surface.answer(replace(authorised(path, text), peer=peer))
        surface.answer(replace(authorised(path, "bad"), peer=peer))
    shown = surface.answer(authorised("/debug/metrics", text)).body.decode()

    labels = re.findall(r'(\w+)="([^"]*)"', shown)
    known = {path for route in ROUTES for path in route.paths} | {""}
    assert {value for key, value in labels if key == "endpoint"} <= known
    token_id = Tokens(SETTINGS).verify(text).token_id
    for secret in (token_id, peer, "hunter2", text):
        assert secret not in shown


def test_h39_a_request_of_the_applications_is_handed_on_as_it_came() -> None:
    """The very `receive` of the server: its body is not touched."""
    seen: list[object] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.extend((receive, await receive(), await receive()))

    parts = [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"b", "more_body": False},
    ]

    async def receive() -> Any:
        return parts.pop(0)

    async def send(message: Any) -> None:
        pass

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/shop",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    wanted = [receive, *parts]
    asyncio.run(asgi.Stroboscope(inner, SETTINGS)(scope, receive, send))

    assert seen == wanted


@pytest.mark.parametrize("kind", ["websocket", "lifespan", "webtransport"])
def test_h04_only_http_is_ours(kind: str) -> None:
    """A websocket below the mount is the application's, with its `receive` and `send`."""
    seen: list[object] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def nothing(*arguments: Any) -> Any:
        return {"type": f"{kind}.nothing"}

    headers = [(b"authorization", f"Bearer {token('admin')}".encode())]
    scope = {"type": kind, "path": "/debug/stacks", "headers": headers}
    asyncio.run(asgi.Stroboscope(inner, SETTINGS)(scope, nothing, nothing))

    assert seen == [kind]


class Odd:
    """What a function that decides may give back by mistake."""

    def __iter__(self) -> Any:
        raise SystemExit

    def __bool__(self) -> bool:
        return True


async def decides_later(carrier: object, scopes: object) -> bool:
    return True


@pytest.mark.parametrize(
    ("authorize", "status"),
    [
        (lambda carrier, scopes: itertools.count(), 403),
        (lambda carrier, scopes: itertools.repeat("metrics"), 200),
        (lambda carrier, scopes: "metrics", 401),
        (lambda carrier, scopes: {"metrics": False}, 401),
        (lambda carrier, scopes: [["metrics"]], 401),
        (lambda carrier, scopes: Odd(), 401),
        (lambda carrier, scopes: 1, 401),
        (lambda carrier, scopes: object(), 401),
        (lambda: True, 401),
        (lambda carrier, scopes: scopes.clear(), 401),
        (lambda carrier, scopes: carrier.clear(), 401),
    ],
)
def test_h06_a_function_that_decides_oddly_opens_nothing(
    authorize: Any, status: int
) -> None:
    """In doubt no; what has no end is not read to it."""
    chosen = Settings(keys=(KEY,), service="shop", authorize=authorize)
    surface = Surface(chosen, FakeClock())
    asked = authorised("/debug/", Tokens(SETTINGS, FakeClock()).mint(["metrics"], 60))

    assert surface.answer(asked).status == status


@pytest.mark.filterwarnings("ignore:coroutine 'decides_later'")
def test_h06_a_coroutine_function_that_decides_is_a_no() -> None:
    """It is not waited for, and its coroutine is no yes."""
    authorize: Any = decides_later
    chosen = Settings(keys=(KEY,), service="shop", authorize=authorize)

    assert Surface(chosen).answer(authorised("/debug/", token("metrics"))).status == 401
