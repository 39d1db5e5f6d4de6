"""Ways in and ways to harm that were open once: each stays shut."""

import asyncio
import io
import json
import logging
import os
import threading
import time
import warnings
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
    ask_wsgi,
    authorised,
    bearer,
    request,
    token,
    wsgi_inner,
)

from stroboscope._core import engine
from stroboscope._http.messages import Response
from stroboscope.auth.tokens import Tokens
from stroboscope.endpoints import Surface
from stroboscope.endpoints.captures import HELD_CAP
from stroboscope.integrations import asgi, wsgi
from stroboscope.settings import Settings


@pytest.mark.parametrize("count", [99, 101, 4000])
def test_h24_a_query_of_many_fields_is_our_refusal(ask: Ask, count: int) -> None:
    """Whoever sends it: no exception reaches the application's server."""
    path = "/debug/labels?" + "&".join(["a"] * count)

    assert ask(path).status == 401
    answer = ask(path, bearer(token("metrics")))
    assert answer.status == (200 if count < 100 else 414)


def _environ(**named: Any) -> dict[str, Any]:
    text = token("admin")
    return {
        "REQUEST_METHOD": "PUT",
        "PATH_INFO": "/debug/settings",
        "HTTP_HOST": "localhost",
        "HTTP_AUTHORIZATION": f"Bearer {text}",
        "CONTENT_TYPE": "application/json",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(b"{}"),
        **named,
    }


class Breaking(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        raise ZeroDivisionError("hunter2")


@pytest.mark.parametrize(
    ("named", "status"),
    [
        ({"CONTENT_LENGTH": "\u00b2"}, 400),
        ({"CONTENT_LENGTH": "\uff11"}, 400),
        ({"CONTENT_LENGTH": "0" * 5000 + "2"}, 400),
        ({"CONTENT_LENGTH": "-1"}, 400),
        ({"CONTENT_LENGTH": "2", "wsgi.input": Breaking()}, 400),
    ],
    ids=["superscript", "fullwidth", "zeros", "negative", "breaking"],
)
def test_h24_a_body_that_cannot_be_read_is_our_refusal(
    named: dict[str, Any], status: int
) -> None:
    """A length that is none, a stream that raises what it likes."""
    app = wsgi.Stroboscope(wsgi_inner, SETTINGS)
    started: list[str] = []
    body = b"".join(
        app(_environ(**named), lambda status, headers: started.append(status))  # type: ignore[arg-type, return-value]
    )

    assert started[0].startswith(str(status)), body
    assert b"hunter2" not in body
    assert app.surface is not None
    assert app.surface.desk.audit.ended == 1


def test_h24_bodies_without_a_length_are_cut(ask: Ask) -> None:
    """In endless pieces over ASGI, in one stream over WSGI: read up to the cap."""
    taken = 0

    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            nonlocal taken
            taken += size
            return b"x" * size

    if ask is ask_wsgi:
        app: Any = wsgi.Stroboscope(wsgi_inner, SETTINGS)
        started: list[str] = []
        environ = _environ(**{"wsgi.input_terminated": True, "wsgi.input": Endless()})
        app(environ, lambda status, headers: started.append(status))
        status = started[0][:3]
    else:
        app = asgi.Stroboscope(asgi_inner, SETTINGS)
        sent: list[Any] = []

        async def receive() -> Any:
            nonlocal taken
            taken += 1000
            return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = admin() | {"Host": "localhost"}
        scope = {
            "type": "http",
            "method": "PUT",
            "path": "/debug/settings",
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
        }

        async def main() -> None:
            async with asyncio.timeout(5):
                await app(scope, receive, send)

        asyncio.run(main())
        status = str(sent[0]["status"])

    assert status == "413"
    assert taken < 70_000


def test_h20_a_fork_while_the_pool_is_full_leaves_the_child_its_own() -> None:
    """Threads of the parent hold none of the child's turns, nor its lock."""
    surface = Surface(SETTINGS)
    leave = threading.Event()
    while surface._pool.submit(lambda: leave.wait(30)):
        pass
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            asked = authorised("/debug/labels", token("metrics"))
            os.write(writing, str(surface.answer(asked).status).encode())
        finally:
            os._exit(0)
    os.close(writing)
    leave.set()
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)

    assert text == "200"


def test_h20_long_captures_leave_turns_for_the_operator() -> None:
    """A leaked token that asks for every long capture cannot keep an admin out."""
    surface = Surface(Settings(keys=(KEY,), service="shop"))
    long = [
        replace(authorised(path, token("profile")), query="seconds=30")
        for path in ("/debug/pprof/heap", "/debug/pprof/goroutine") * 10
    ]
    threads = [threading.Thread(target=surface.answer, args=(one,)) for one in long]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.3)
        statuses = [
            surface.answer(authorised("/debug/labels", token("admin"))).status
            for _ in range(5)
        ]
    finally:
        for one in long:
            one.cancellation.cancel()
        for thread in threads:
            thread.join()

    assert statuses == [200] * 5


@pytest.mark.parametrize("ask", [ask_asgi, ask_wsgi], ids=["asgi", "wsgi"])
def test_h20_no_thread_to_be_had_is_a_429(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no turn is lost by it."""
    maker = asgi if ask is ask_asgi else wsgi
    app: Any = maker.Stroboscope(
        asgi_inner if ask is ask_asgi else wsgi_inner, SETTINGS
    )

    def refuse(target: Any) -> None:
        raise RuntimeError("can't start new thread")

    headers = bearer(token("metrics"))
    with monkeypatch.context() as patched:
        patched.setattr(engine, "start_thread", refuse)
        refused = [ask("/debug/labels", headers, app=app).status for _ in range(15)]
    after = ask("/debug/labels", headers, app=app).status

    assert set(refused) == {429}
    assert after == 200


@pytest.mark.parametrize(
    "error", [SystemExit, asyncio.CancelledError, KeyboardInterrupt]
)
def test_what_the_users_function_raises_hangs_nobody(
    ask: Ask, error: type[BaseException]
) -> None:
    """An exception of the kind that ends threads is a refusal like any other."""

    def authorize(carrier: Any, scopes: frozenset[str]) -> bool:
        raise error

    chosen = Settings(keys=(KEY,), service="shop", authorize=authorize)
    answers: list[int] = []
    asking = threading.Thread(
        target=lambda: answers.append(
            ask("/debug/", bearer(token("metrics")), settings=chosen).status
        ),
        daemon=True,
    )
    asking.start()
    asking.join(5)

    assert answers == [401]


def test_h44_nobody_can_silence_the_audit_log(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by its own level, nor by that of a logger above it."""
    monkeypatch.setattr(logging.root, "level", logging.INFO)
    logging.root.manager._clear_cache()  # type: ignore[attr-defined]
    try:
        for name in ("stroboscope.audit", "stroboscope", ""):
            body = json.dumps({"log_levels": {name: "CRITICAL"}}).encode()
            answer = ask("/debug/settings", admin(), "PUT", body=body)
            assert answer.status == 400, name
            assert b"audit" in answer.body
        # Nor in two steps, of which the first only seems to keep it.
        app: Any = asgi.Stroboscope(asgi_inner, SETTINGS)
        statuses = []
        for levels in ({"stroboscope": "INFO", "": "ERROR"}, {"": "ERROR"}):
            body = json.dumps({"log_levels": levels}).encode()
            answer = ask_asgi("/debug/settings", admin(), "PUT", body=body, app=app)
            statuses.append(answer.status)
        assert statuses == [200, 400]
        app.surface.desk.knobs.change({"log_levels": None})
    finally:
        monkeypatch.undo()
        logging.root.manager._clear_cache()  # type: ignore[attr-defined]


def test_h33_if_match_cannot_be_smuggled_away() -> None:
    """Sent twice it is no permission to write over another's change; `*` is any."""
    surface = Surface(SETTINGS)

    def put(*match: str) -> int:
        asked = authorised("/debug/settings", token("admin"), "PUT")
        named = [("content-type", "application/json")]
        named += [("if-match", one) for one in match]
        asked = replace(asked, headers=(*asked.headers, *named))
        return surface.answer(asked, read_body=lambda: b'{"cpu_hz": 50}').status

    assert put('"77"', '"78"') == 409
    assert put("*") == 200
    assert put('"77"') == 409


def _share(surface: Surface, clock: FakeClock, **body: object) -> dict[str, Any]:
    text = Tokens(SETTINGS, clock).mint(["profile"], 600)
    asked = authorised("/debug/share", text, "POST")
    asked = replace(
        asked, headers=(*asked.headers, ("content-type", "application/json"))
    )
    answer = surface.answer(asked, read_body=lambda: json.dumps(body).encode())
    made: dict[str, Any] = json.loads(answer.body)
    return made


def test_h45_a_server_that_takes_no_answer_gets_no_exception() -> None:
    """uvicorn refuses a bad body by itself, and then our answer to its head."""
    surface = Surface(SETTINGS)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/debug/labels",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    sent: list[object] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        sent.append(message)
        raise RuntimeError("can't handle event type Response")

    asyncio.run(surface.asgi(scope, receive, send))

    assert len(sent) == 1


def test_a_link_is_one_capture() -> None:
    """Opened twice, it gives the same bytes: nobody profiles us again and again."""
    clock = FakeClock()
    surface = Surface(SETTINGS, clock)
    made = _share(surface, clock, path="/pprof/profile?seconds=0.1")

    def opened() -> Response:
        return surface.answer(request(made["url"]))

    first, again = opened(), opened()

    assert (first.status, again.status) == (200, 200)
    assert first.body == again.body


def test_a_kept_artefact_that_had_to_go_is_gone() -> None:
    """It is not quietly taken anew: the link was made for that one."""
    clock = FakeClock()
    surface = Surface(SETTINGS, clock)
    made = [
        _share(surface, clock, path="/pprof/goroutine", keep=True)
        for _ in range(HELD_CAP + 1)
    ]

    oldest = surface.answer(request(made[0]["url"]))
    newest = surface.answer(request(made[-1]["url"]))

    assert (oldest.status, newest.status) == (404, 200)
    assert oldest.body == b"the artefact is gone\n"


def test_a_certificate_cannot_pretend_to_be_two_names() -> None:
    """A comma within a value is no next attribute."""

    class Connection:
        def getpeercert(self) -> dict[str, Any]:
            return {"subject": ((("commonName", "x,OU=ops"),),)}

    chosen = Settings(keys=(KEY,), certificates={"CN=x,OU=ops": ("metrics",)})
    app = wsgi.Stroboscope(wsgi_inner, chosen)
    environ = _environ(
        REQUEST_METHOD="GET", PATH_INFO="/debug/", **{"gunicorn.socket": Connection()}
    )
    del environ["HTTP_AUTHORIZATION"]
    started: list[str] = []
    app(environ, lambda status, headers: started.append(status))  # type: ignore[arg-type, return-value]

    assert started[0].startswith("401")


def test_h36_the_applications_own_prefix_is_escaped(ask: Ask) -> None:
    """Where an outer router takes the prefix from the address, it may hold markup."""
    root = '/"><script>x</script>'
    headers = (("authorization", f"Bearer {token('metrics', 'profile')}"),)
    for path in ("/debug/", "/debug/pprof/"):
        asked = replace(request(path, *headers), root=root)
        answer = Surface(SETTINGS).answer(asked)
        assert answer.status == 200
        assert b"<script>" not in answer.body


def test_h33_a_change_ends_though_no_thread_could_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next request watches over it."""
    surface = Surface(SETTINGS)
    desk = surface.desk
    desk.knobs.change({"cpu_hz": 37}, 600.0)

    def refuse(target: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(engine, "start_thread", refuse)
        desk.watch_knobs()
    watched: list[Any] = []
    monkeypatch.setattr(engine, "start_thread", watched.append)
    desk.watch_knobs()

    assert len(watched) == 1


def test_h04_whatever_is_below_the_mount_asks_first() -> None:
    """See the property in test_fuzz; here that a full pool tells a stranger nothing."""
    surface = Surface(SETTINGS)
    leave = threading.Event()
    while surface._pool.submit(lambda: leave.wait(30)):
        pass
    try:
        assert surface.answer(request("/debug/labels")).status == 401
        assert (
            surface.answer(authorised("/debug/labels", token("metrics"))).status == 429
        )
    finally:
        leave.set()
