"""The checklist's promises: each test carries the number of its row."""

import asyncio
import base64
import gc
import gzip
import io
import json
import logging
import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from asking import (
    KEY,
    SETTINGS,
    Ask,
    FakeClock,
    asgi_inner,
    ask_asgi,
    bearer,
    token,
    wsgi_inner,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stroboscope._core import engine
from stroboscope._http.messages import Request, Response
from stroboscope.auth.origin import check_host, check_site
from stroboscope.auth.passwords import StaticUser, hash_password
from stroboscope.auth.throttle import PEERS_CAP, Throttle
from stroboscope.auth.tokens import Tokens
from stroboscope.endpoints import Surface
from stroboscope.endpoints.leases import GRACE_S, Leases, LeaseTaken
from stroboscope.endpoints.routes import ROUTES
from stroboscope.errors import BadHost, CrossSite, SettingsError, Throttled
from stroboscope.formats.pprof_reader import decode
from stroboscope.integrations import asgi, wsgi
from stroboscope.settings import Settings

ADMIN = {"Content-Type": "application/json"}
GETS = [r.paths[0] for r in ROUTES if "GET" in r.actions]


def admin() -> dict[str, str]:
    return ADMIN | bearer(token("admin"))


def request(path: str, *headers: tuple[str, str], method: str = "GET") -> Request:
    named = (("host", "127.0.0.1"), *headers)
    return Request(method, path, "", named, "10.0.0.9")


def authorised(path: str, text: str, method: str = "GET") -> Request:
    return request(path, ("authorization", f"Bearer {text}"), method=method)


def test_h11_secrets_are_compared_in_constant_time() -> None:
    """No file of the auth floor compares a digest, key or password with `==`."""
    import ast
    from pathlib import Path

    import stroboscope.auth

    secret = {"digest", "password", "mark", "key", "text", "_digest", "_known"}
    for file in Path(stroboscope.auth.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare):
                names = {
                    getattr(one, "id", getattr(one, "attr", ""))
                    for one in (node.left, *node.comparators)
                }
                is_equality = any(isinstance(o, (ast.Eq, ast.NotEq)) for o in node.ops)
                assert not (is_equality and names & secret), (file.name, node.lineno)


def test_h12_failures_are_bounded_and_lock_nobody_out() -> None:
    """Twenty bad tries end in 429; a good token passes, from there and elsewhere."""
    surface = Surface(SETTINGS)
    bad = [surface.answer(authorised("/debug/", "x.y")) for _ in range(20)]
    good = surface.answer(authorised("/debug/", token("metrics")))

    assert [a.status for a in bad] == [401] * 10 + [429] * 10
    assert 1 <= int(dict(bad[-1].headers)["Retry-After"]) <= 60
    assert good.status == 200


def test_h12_buckets_are_few_and_end() -> None:
    """Many peers are few buckets, a minute later all may try again."""
    clock = FakeClock()
    throttle = Throttle(clock)
    for i in range(PEERS_CAP + 100):
        throttle.failed(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}")
    assert len(throttle) <= PEERS_CAP
    with pytest.raises(Throttled):
        throttle.check("192.0.2.1")

    clock.now_s += 61
    throttle.check("192.0.2.1")
    for _ in range(10):
        throttle.failed("2001:db8::1")
    with pytest.raises(Throttled):  # the same /64
        throttle.check("2001:db8::2")


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


@pytest.mark.parametrize("path", GETS)
def test_h16_get_changes_nothing(ask: Ask, path: str) -> None:
    """After GET, HEAD and OPTIONS on every route the knobs are what they were."""
    surface = asgi.Stroboscope(asgi_inner, SETTINGS)
    assert surface.surface is not None
    before = surface.surface.desk.knobs.version
    for method in ("GET", "HEAD", "OPTIONS"):
        ask_asgi(f"/debug{path}?seconds=0.05", admin(), method, app=surface)

    assert surface.surface.desk.knobs.version == before
    assert ask("/debug/revoke", admin()).status == 405


def test_h16_changes_need_json(ask: Ask) -> None:
    """A form cannot send it: 415; nor may the body be compressed."""
    body = json.dumps({"cpu_hz": 50}).encode()
    form = bearer(token("admin")) | {"Content-Type": "text/plain"}
    assert ask("/debug/settings", form, "PUT", body=body).status == 415
    squeezed = admin() | {"Content-Encoding": "gzip"}
    assert (
        ask("/debug/settings", squeezed, "PUT", body=gzip.compress(body)).status == 415
    )


def test_h17_forwarded_headers_mean_nothing(ask: Ask) -> None:
    """A peer that says it is local still needs a token."""
    headers = {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1"}

    assert ask("/debug/", headers).status == 401


class Tracing:
    """A collector to stand in until the real one is built."""

    def __init__(self) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        self.fails = False

    def __call__(self, seconds: float, cancellation: Any) -> bytes:
        if self.fails:
            raise RuntimeError("the encoder's own")
        cancellation.on_cancel(self.leave.set)
        self.entered.set()
        self.leave.wait(10)
        return b"trace"


def test_h19_one_trace_at_a_time() -> None:
    """Of ten at once, one is answered, nine are told to come back, all alike."""
    tracing = Tracing()
    surface = Surface(SETTINGS, tracer=tracing)
    asked = authorised("/debug/trace", token("trace"))
    with ThreadPoolExecutor(10) as pool:
        pending = [pool.submit(surface.answer, asked) for _ in range(10)]
        deadline = time.monotonic() + 10
        while sum(p.done() for p in pending) < 9 and time.monotonic() < deadline:
            time.sleep(0.01)
        tracing.leave.set()
        answers = [p.result() for p in pending]

    refused = [a for a in answers if a.status == 429]
    assert len(refused) == 9
    assert len({a.body for a in refused}) == 1
    assert all(int(dict(a.headers)["Retry-After"]) >= 1 for a in refused)
    (served,) = [a for a in answers if a.status == 200]
    assert served.body == b"trace"


def test_h20_a_lease_is_freed_however_its_block_ends() -> None:
    """After an error, after a vanished client, and when its holder is stuck."""
    tracing = Tracing()
    tracing.fails = True
    surface = Surface(SETTINGS, tracer=tracing)
    assert surface.answer(authorised("/debug/trace", token("trace"))).status == 500
    assert surface.desk.leases.current() is None

    tracing.fails = False
    gone = authorised("/debug/trace", token("trace"))
    threading.Timer(0.2, gone.cancellation.cancel).start()
    began = time.monotonic()
    surface.answer(gone)
    assert time.monotonic() - began < 0.2 + 0.25
    assert surface.desk.leases.current() is None

    clock = FakeClock()
    leases = Leases(clock)
    stuck = leases.hold("trace", "a", 10)
    stuck.__enter__()
    with pytest.raises(LeaseTaken) as taken, leases.hold("trace", "b", 10):
        pass
    assert taken.value.retry_after_s == 10
    clock.now_s += 10 + GRACE_S
    with leases.hold("trace", "b", 10):
        stuck.__exit__(None, None, None)  # the late holder frees nobody else's
        assert leases.current() is not None


def test_h24_large_bodies_are_refused_unread(ask: Ask) -> None:
    """Above 64 KiB: 413, with a length or without."""
    body = b'{"x":"' + b"x" * 70_000 + b'"}'

    assert ask("/debug/settings", admin(), "PUT", body=body).status == 413


def test_h29_nothing_shows_arguments_or_environment(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret in argv, environment, a local and a thread's name appears nowhere."""
    secret = "canary-7f3a91"
    monkeypatch.setenv("CANARY", secret)
    monkeypatch.setattr("sys.argv", ["app", f"--password={secret}"])
    done = threading.Event()

    def work(local: str) -> None:
        done.wait(30)

    thread = threading.Thread(target=work, args=(secret,), name=f"user {secret}@x!")
    thread.start()
    try:
        for path in GETS:
            for query in ("seconds=0.05", "debug=1", "debug=2"):
                answer = ask(f"/debug{path}?{query}", bearer(token("admin")))
                body = answer.body
                if body[:2] == b"\x1f\x8b":
                    body = gzip.decompress(body)
                assert secret.encode() not in body, (path, query)
    finally:
        done.set()
        thread.join()


def test_h30_no_object_is_asked_for_its_text(ask: Ask) -> None:
    """Stacks of a thread whose locals raise when shown are served all the same."""

    class Loud:
        shown = 0

        def __repr__(self) -> str:
            Loud.shown += 1
            raise RuntimeError

    done = threading.Event()
    thread = threading.Thread(target=lambda loud: done.wait(30), args=(Loud(),))
    thread.start()
    try:
        for path in ("/stacks", "/pprof/goroutine?debug=2"):
            assert ask(f"/debug{path}", bearer(token("profile"))).status == 200
    finally:
        done.set()
        thread.join()

    assert Loud.shown == 0


def test_h33_settings_return_by_themselves(caplog: pytest.LogCaptureFixture) -> None:
    """An override ends after its ttl, whoever asks or not, and the log says so."""
    surface = asgi.Stroboscope(asgi_inner, SETTINGS)
    logger = logging.getLogger("a.logger.of.the.application")
    logger.setLevel(logging.ERROR)
    levels = {"log_levels": {logger.name: "DEBUG"}, "cpu_hz": 20, "ttl": "1s"}
    answer = ask_asgi(
        "/debug/settings", admin(), "PUT", body=json.dumps(levels).encode(), app=surface
    )
    shown = json.loads(answer.body)["settings"]["cpu_hz"]

    assert answer.status == 200
    assert (shown["value"], shown["baseline"], shown["overridden"]) == (20, 100, True)
    assert 0 < shown["expires_in"] <= 1
    assert logger.level == logging.DEBUG
    deadline = time.monotonic() + 5
    while logger.level != logging.ERROR and time.monotonic() < deadline:
        time.sleep(0.05)
    assert logger.level == logging.ERROR
    assert "cpu_hz is back at its baseline" in caplog.text


def test_h33_lost_updates_are_refused() -> None:
    """`If-Match` with an old version: 409; a preset sets all it names."""
    surface = asgi.Stroboscope(asgi_inner, SETTINGS)

    def put(body: dict[str, Any], *match: str) -> Any:
        headers = admin() | dict.fromkeys(["If-Match"][: len(match)], "".join(match))
        data = json.dumps(body).encode()
        return ask_asgi("/debug/settings", headers, "PUT", body=data, app=surface)

    first = put({"preset": "forensic", "ttl": "10m"})
    tag = first.headers["ETag"]
    values = {k: v["value"] for k, v in json.loads(first.body)["settings"].items()}
    assert (values["cpu_hz"], values["mutex_fraction"]) == (1000, 1)
    assert put({"cpu_hz": 10}, tag).status == 200
    assert put({"cpu_hz": 11}, tag).status == 409
    assert put({"cpu_hz": None}).status == 200
    shown = json.loads(ask_asgi("/debug/settings", admin(), app=surface).body)
    assert shown["settings"]["cpu_hz"]["value"] == 100


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{", b'{"cpu_hz": 0}', b'{"cpu_hz": true}', b'{"cpu_hz": NaN}'),
        *(b'{"no": 1}', b'{"preset": "x"}', b'{"cpu_hz": 9, "ttl": "25h"}', b"\xff"),
        *(b'{"cpu_hz": 9, "ttl": 5}', b'{"log_levels": {"no.such.logger": "INFO"}}'),
        *(b'{"latency_buckets": [2, 1]}', b'{"trace_fraction": 2}', b"[" * 50_000),
    ],
)
def test_h33_bad_changes_change_nothing(ask: Ask, body: bytes) -> None:
    """400 in one line, none of the change is made."""
    answer = ask("/debug/settings", admin(), "PUT", body=body)

    assert answer.status == 400
    assert answer.body.count(b"\n") == 1


def test_h34_the_governor_slows_then_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too much CPU of ours for five seconds: a lower rate, then an early end."""
    clock = FakeClock()
    surface = Surface(SETTINGS, clock)
    governor = surface.desk.governor
    spent = [0]
    monkeypatch.setattr(engine, "own_cpu_ns", lambda: spent[0])
    window = engine.open_window(100)
    try:
        for _ in range(30):
            clock.now_s += 1
            spent[0] += 50_000_000  # 5 % of one CPU
            governor.look()
            if governor.slowed == 1 and engine.hz == 25 and not governor.stopped:
                rate_seen = engine.hz
            if governor.stopped:
                break
        cancelled = not window.wait(0.01)
    finally:
        window.close()

    assert rate_seen == 25
    assert (governor.slowed, governor.stopped) == (2, 1)  # 25, 6, then the end
    assert cancelled
    assert "allowed 2 %" in governor.actions_since(0)[0].text


def test_h40_our_own_work_is_not_in_profiles() -> None:
    """A profile taken while the surface is asked has no frame of ours above 1 %."""
    surface = Surface(Settings(keys=(KEY,), service="shop"))
    done = threading.Event()

    def ask_often() -> None:
        while not done.is_set():
            surface.answer(authorised("/debug/stacks", token("profile")))

    def burn() -> None:
        while not done.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=work) for work in (ask_often, burn)]
    for thread in threads:
        thread.start()
    try:
        asked = authorised("/debug/pprof/profile", token("profile"))
        answer = surface.answer(
            Request(**{**_fields(asked), "query": "seconds=1"})  # type: ignore[arg-type]
        )
    finally:
        done.set()
        for thread in threads:
            thread.join()

    profile = decode(answer.body)
    ours = sum(
        s.values[1] for s in profile.samples if "/endpoints/state.py" in str(s.stack)
    )
    assert ours <= 0.01 * profile.total()


def _fields(asked: Request) -> dict[str, object]:
    return {name: getattr(asked, name) for name in asked.__slots__}


def test_h44_each_request_leaves_a_record(caplog: pytest.LogCaptureFixture) -> None:
    """Begun before acting, completed after; refusals too; never a secret."""
    text, peer = token("profile"), "198.51.100.44"
    surface = Surface(SETTINGS)

    def ask(path: str, query: str, credentials: str) -> None:
        named = (("host", "localhost"), ("authorization", f"Bearer {credentials}"))
        surface.answer(Request("GET", path, query, named, peer))

    def audits() -> list[Any]:
        found: list[Any] = [getattr(r, "audit", {}) for r in caplog.records]
        return [one for one in found if one.get("peer") == peer]

    with caplog.at_level(logging.INFO, "stroboscope.audit"):
        ask("/debug/pprof/profile", "seconds=0.1&token=hunter2", text)
        ask("/debug/settings", "", "bad.token")
        deadline = time.monotonic() + 5
        while len(audits()) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)

    begun, ended, refused = audits()
    assert (begun["event"], ended["event"]) == ("begin", "end")
    assert begun["id"] == ended["id"] != refused["id"]
    assert ended["endpoint"] == "/pprof/profile"
    assert (ended["status"], ended["parameters"]) == (200, {"seconds": "0.1"})
    assert ended["bytes"] > 50
    assert ended["duration_ms"] >= 100
    assert (refused["status"], refused["event"]) == (401, "end")
    for secret in (text, "hunter2", "bad.token", KEY):
        assert secret not in caplog.text


def test_h46_metrics_have_a_scope_of_their_own(ask: Ask) -> None:
    """A scraper's token sees counters and nothing of profiles."""
    headers = bearer(token("metrics"))
    answer = ask("/debug/metrics", headers)

    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert b"# TYPE stroboscope_samples_total counter" in answer.body
    assert ask("/debug/pprof/profile", headers).status == 403


def test_h47_collecting_garbage_is_guarded() -> None:
    """GET collects nothing; POST does, once in ten seconds."""
    clock = FakeClock()
    surface = Surface(SETTINGS, clock)
    admin_token = Tokens(SETTINGS, clock).mint(["admin"], 600)
    collections: list[str] = []
    callback = lambda phase, info: collections.append(phase)  # noqa: E731
    gc.disable()
    gc.callbacks.append(callback)
    try:
        seen = surface.answer(authorised("/debug/gc", admin_token))
        assert (seen.status, collections) == (200, [])
        post = authorised("/debug/gc", admin_token, "POST")
        first, second = surface.answer(post), surface.answer(post)
        clock.now_s += 11
        third = surface.answer(post)
    finally:
        gc.callbacks.remove(callback)
        gc.enable()

    assert [a.status for a in (first, second, third)] == [200, 429, 200]
    assert "unreachable" in json.loads(first.body)


def test_a_static_user_is_checked_off_the_loop() -> None:
    """A hashed password by Basic; a wrong one is 401 and soon 429."""
    chosen = Settings(
        keys=(KEY,), user="ops", password_hash=hash_password("correct horse battery")
    )
    surface = Surface(chosen)

    def ask_as(password: str) -> int:
        text = base64.b64encode(f"ops:{password}".encode()).decode()
        asked = request("/debug/", ("authorization", f"Basic {text}"))
        return surface.answer(asked).status

    assert ask_as("correct horse battery") == 200
    assert [ask_as("wrong") for _ in range(12)] == [401] * 10 + [429] * 2
    with pytest.raises(SettingsError):
        StaticUser("ops", "plain text")


def test_the_users_own_function_can_only_narrow() -> None:
    """It may take scopes away or refuse, never add; its failure is a refusal."""
    for answer, status in (
        (True, 200),
        (False, 403),
        (("metrics", "admin"), 200),
        (("admin",), 403),
        (None, 401),
    ):
        chosen = Settings(
            keys=(KEY,), service="shop", authorize=lambda carrier, scopes, a=answer: a
        )
        asked = authorised("/debug/", token("metrics"))
        assert Surface(chosen).answer(asked).status == status, answer


def test_a_verified_certificate_may_stand_for_a_token() -> None:
    """Only where the server verified it, only for subjects in settings."""
    chosen = Settings(keys=(KEY,), certificates={"CN=scraper": ("metrics",)})
    app = wsgi.Stroboscope(wsgi_inner, chosen)

    def ask_with(**environ: str) -> str:
        statuses: list[str] = []
        app(
            {
                "REQUEST_METHOD": "GET",
                "PATH_INFO": "/debug/",
                "HTTP_HOST": "localhost",
                "wsgi.url_scheme": "http",
                **environ,
            },
            lambda status, headers: statuses.append(status),  # type: ignore[arg-type, return-value]
        )
        return statuses[0][:3]

    subject = {"SSL_CLIENT_S_DN": "CN=scraper"}
    assert ask_with(SSL_CLIENT_VERIFY="SUCCESS", **subject) == "200"
    assert ask_with(SSL_CLIENT_VERIFY="FAILED", **subject) == "401"
    assert ask_with(HTTP_SSL_CLIENT_VERIFY="SUCCESS", **subject) == "401"


def test_h09_tokens_are_revoked_by_id_and_by_moment() -> None:
    """One id, or everything until now; what is signed later counts."""
    clock = FakeClock()
    surface = Surface(SETTINGS, clock)
    tokens = Tokens(SETTINGS, clock)

    def post(body: dict[str, str]) -> Response:
        asked = request(
            "/debug/revoke",
            ("authorization", f"Bearer {tokens.mint(['admin'], 60)}"),
            ("content-type", "application/json"),
            method="POST",
        )
        return surface.answer(asked, read_body=lambda: json.dumps(body).encode())

    one = tokens.mint(["metrics"], 600)
    assert surface.answer(authorised("/debug/", one)).status == 200
    assert post({"id": Tokens(SETTINGS, clock).verify(one).token_id}).status == 200
    assert surface.answer(authorised("/debug/", one)).status == 401

    two = tokens.mint(["metrics"], 600)
    clock.now_s += 5
    assert post({"before": "now"}).status == 200
    assert surface.answer(authorised("/debug/", two)).status == 401
    three = tokens.mint(["metrics"], 600)
    assert surface.answer(authorised("/debug/", three)).status == 200
    assert post({"nonsense": "x"}).status == 400


def test_share_links_open_one_path_for_a_while() -> None:
    """No token needed; GET only; kept artefacts stay the same; revocable."""
    clock = FakeClock()
    surface = Surface(SETTINGS, clock)
    tokens = Tokens(SETTINGS, clock)

    def share(scopes: list[str], **body: object) -> Response:
        asked = request(
            "/debug/share",
            ("authorization", f"Bearer {tokens.mint(scopes, 600)}"),
            ("content-type", "application/json"),
            method="POST",
        )
        return surface.answer(asked, read_body=lambda: json.dumps(body).encode())

    path = "/pprof/profile?seconds=0.1"
    made = json.loads(share(["profile"], path=path, keep=True).body)
    first = surface.answer(request(made["url"]))
    again = surface.answer(request(made["url"]))
    assert first.status == 200
    assert first.body == again.body
    assert surface.answer(request(made["url"], method="POST")).status == 401
    assert surface.answer(request(made["url"][:-1])).status == 401
    # The link's text is no token, and a token no link.
    text = made["url"].rpartition("/")[2]
    assert surface.answer(authorised("/debug/", text)).status == 401

    assert share(["metrics"], path=path).status == 403
    assert share(["admin"], path="/settings").status == 403
    assert share(["profile"], path=path, ttl="16m").status == 400
    surface.desk.gate.revocations.revoke(made["id"])
    assert surface.answer(request(made["url"])).status == 401

    live = json.loads(share(["profile"], path=path, ttl="1m").body)
    assert decode(surface.answer(request(live["url"])).body).duration_ns > 0
    clock.now_s += 61
    assert surface.answer(request(live["url"])).status == 401


STATUSES = {
    *(200, 201, 400, 401, 403, 404, 405, 408, 409, 413, 414, 415, 429, 501, 503)
}


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    method=st.sampled_from(["GET", "PUT", "POST", "HEAD", "BREW", ""]),
    path=st.one_of(
        st.sampled_from(["/debug" + p for r in ROUTES for p in r.paths]),
        st.text(max_size=60).map(lambda text: "/debug/" + text),
    ),
    query=st.one_of(
        st.just("seconds=0.01"),
        st.text(st.characters(max_codepoint=255), max_size=80),
    ),
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                ["host", "origin", "content-type", "accept", "if-match", "cookie"]
            ),
            st.text(st.characters(max_codepoint=255), max_size=40),
        ),
        max_size=4,
    ),
    body=st.binary(max_size=200),
    is_known=st.booleans(),
)
@pytest.mark.parametrize("carrier", ["asgi", "wsgi"])
def test_nothing_that_is_sent_breaks_the_surface(
    carrier: str,
    method: str,
    path: str,
    query: str,
    headers: list[tuple[str, str]],
    body: bytes,
    is_known: bool,
) -> None:
    """A status of the contract, one complete record, no traceback, no leaked lease, no
    unasked change."""
    desk = FUZZED.desk
    version, written = desk.knobs.version, desk.audit.ended
    named = [("host", "localhost"), *headers]
    if is_known:
        named.append(("authorization", f"Bearer {token('metrics', 'profile')}"))
    send = _send_asgi if carrier == "asgi" else _send_wsgi

    status, answered = send(method, path, query, named, body)

    assert status in STATUSES
    assert b"Traceback" not in answered
    assert desk.leases.current() is None
    assert desk.knobs.version == version
    assert desk.audit.ended == written + 1
    assert desk.audit.dropped == 0


def _send_asgi(
    method: str, path: str, query: str, headers: list[tuple[str, str]], body: bytes
) -> tuple[int, bytes]:
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode("latin-1"),
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers],
        "client": ("198.51.100.7", 1),
    }
    sent: list[dict[str, Any]] = []
    came = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if came:
            return came.pop()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(FUZZED.asgi(scope, receive, send))
    return sent[0]["status"], b"".join(one.get("body", b"") for one in sent)


def _send_wsgi(
    method: str, path: str, query: str, headers: list[tuple[str, str]], body: bytes
) -> tuple[int, bytes]:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REMOTE_ADDR": "198.51.100.7",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
    }
    for key, value in headers:
        name = key.upper().replace("-", "_")
        environ[name if name == "CONTENT_TYPE" else f"HTTP_{name}"] = value
    started: list[str] = []
    chunks = FUZZED.wsgi(environ, lambda status, headers, *_: started.append(status))
    return int(started[0].split()[0]), b"".join(chunks)


FUZZED = Surface(Settings(keys=(KEY,), service="shop", profile_seconds_cap=0.05))


def test_a_refusal_costs_the_loop_little() -> None:
    """Under 100 us of CPU on the loop, with a bad token, at the median of many."""
    surface = Surface(SETTINGS)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/debug/pprof/profile",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"authorization", b"Bearer bad.token")],
    }

    async def send(message: Any) -> None:
        pass

    async def main() -> list[int]:
        took = []
        for _ in range(300):
            began = time.thread_time_ns()
            await surface.asgi(dict(scope), None, send)  # type: ignore[arg-type]
            took.append(time.thread_time_ns() - began)
        return sorted(took)

    assert asyncio.run(main())[150] < 100_000


def test_h44_the_record_is_an_event_of_the_requests_span(ask: Ask) -> None:
    """Answered and refused requests leave one on the span they came in, if recorded."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
        InMemorySpanExporter,
    )

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("test").start_as_current_span("request"):
        ask("/debug/labels", bearer(token("metrics")))
        ask("/debug/labels", bearer("bad"))
    (span,) = exporter.get_finished_spans()

    assert [event.name for event in span.events] == ["stroboscope.audit"] * 2
    found = [dict(event.attributes or {}) for event in span.events]
    assert [one["stroboscope.status"] for one in found] == [200, 401]
    assert found[0]["stroboscope.endpoint"] == "/labels"
    assert found[0]["stroboscope.token_id"]


@pytest.mark.parametrize("name", ["heap", "allocs", "goroutine"])
def test_h47_gc_on_a_memory_profile_counts_too(ask: Ask, name: str) -> None:
    """It collects, once in ten seconds, and says so; on other profiles never."""
    phases: list[str] = []

    def seen(phase: str, info: dict[str, int]) -> None:
        if info["generation"] == 2:
            phases.append(phase)

    app: Any = (asgi if ask is ask_asgi else wsgi).Stroboscope(
        asgi_inner if ask is ask_asgi else wsgi_inner, SETTINGS
    )
    was_enabled = gc.isenabled()
    gc.disable()
    gc.callbacks.append(seen)
    try:
        asked = [
            ask(f"/debug/pprof/{name}?gc=1", bearer(token()), app=app) for _ in "ab"
        ]
        plain = ask("/debug/pprof/heap?gc=0", bearer(token()), app=app)
        post = ask("/debug/gc", admin(), "POST", app=app)
    finally:
        gc.callbacks.remove(seen)
        if was_enabled:
            gc.enable()

    assert [one.status for one in (*asked, plain)] == [200, 200, 200]
    comments = [" ".join(decode(one.body).comments) for one in asked]
    is_memory = name != "goroutine"
    assert phases.count("start") == 1
    assert post.status == (429 if is_memory else 200)
    assert ("gc: collected before" in comments[0]) is is_memory
    assert ("gc: not collected" in comments[1]) is is_memory


@pytest.mark.slow
def test_h34_a_governed_profile_says_so() -> None:
    """In the header and in a comment of the artefact itself; the answer is 200."""
    surface = Surface(Settings(keys=(KEY,), service="shop", overhead_share=1e-6))
    asked = request(
        "/debug/pprof/profile", ("authorization", f"Bearer {token('profile')}")
    )
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            sum(range(1000))

    burner = threading.Thread(target=burn)
    burner.start()
    try:
        answer = surface.answer(replace(asked, query="seconds=8"))
    finally:
        stop.set()
        burner.join()

    named = dict(answer.headers)
    assert answer.status == 200
    assert named["X-Stroboscope-Governed"] == "rate=25"
    assert "overhead governor" in " ".join(decode(answer.body).comments)


def test_h33_h20_a_forked_child_keeps_knobs_and_holds_nothing() -> None:
    """Locks held at the moment of the fork do not hang it; overrides and their time
    go on; no lease, no snapshot and no count is inherited."""
    surface = Surface(SETTINGS)
    desk = surface.desk
    desk.knobs.change({"cpu_hz": 37}, 1.0)
    held = [desk.lock, desk.leases._lock, desk.knobs._lock, desk.audit._lock]
    held += [desk.gate.pace._lock, desk.gate.throttle._lock, desk.garbage._lock]
    held += [desk.snapshots._lock]
    reading, writing = os.pipe()
    with desk.leases.hold("trace", "me", 60):
        for lock in held:
            lock.acquire()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                seen = surface.answer(authorised("/debug/settings", token("metrics")))
                lease = desk.leases.current()
                time.sleep(1.6)
                text = json.dumps([seen.status, lease, desk.knobs.get("cpu_hz")])
                os.write(writing, text.encode())
            finally:
                os._exit(0)
        for lock in held:
            lock.release()
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)

    assert json.loads(text) == [200, None, SETTINGS.cpu_hz]
