"""Whatever fails, the response is the one the application gives without us."""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stroboscope._core import LABELS, engine
from stroboscope.errors import SettingsError
from stroboscope.labels import TABLE, current, do
from stroboscope.labels.sets import LabelTable
from stroboscope.middleware import StroboscopeASGI, StroboscopeWSGI
from stroboscope.middleware.observed import Labeller, Observed
from stroboscope.settings import Settings


@pytest.fixture(autouse=True)
def bounds() -> Iterator[None]:
    """Each test leaves the table's bounds at their defaults, and no label."""
    yield

    TABLE.configure(512, "")
    assert LABELS.get() is None


def burn() -> None:
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        current()


def raises(carrier: object) -> str:
    raise ValueError("planted")


Steps = list[object]


def serve_wsgi(app: Any) -> Steps:
    """What a server sees of one request: calls, chunks, errors, in order."""
    seen: Steps = []

    def start_response(status: Any, headers: Any, *rest: Any) -> None:
        seen.append((status, headers, *rest))
        if not isinstance(status, str):
            raise AssertionError("the server refuses this status")

    try:
        body = app({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, start_response)
        seen.append(getattr(body, "__len__", lambda: "no length")())
        seen += body
        for _ in range(2):
            getattr(body, "close", lambda: None)()
    except Exception as error:
        seen.append((type(error), str(error)))
    return seen


class Body:
    def __init__(self) -> None:
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        yield b"a"
        burn()
        yield b"b"

    def close(self) -> None:
        self.closed += 1
        if self.closed == 2:
            raise RuntimeError("closed twice")


def wsgi(
    body: Callable[[], Any], status: Any = "200 OK", headers: Any = ()
) -> Callable[..., Any]:
    def app(environ: Any, start_response: Any) -> Any:
        burn()
        if status is not None:
            start_response(status, list(headers))
        return body()

    return app


def wsgi_raises(environ: Any, start_response: Any) -> Any:
    burn()
    raise KeyError("before routing")


WSGI = {
    "fine": wsgi(lambda: [b"x"]),
    "closed twice": wsgi(Body),
    "raises": wsgi_raises,
    "never starts": wsgi(lambda: [b"x"], status=None),
    "returns None": wsgi(lambda: None),
    "returns a number": wsgi(lambda: 3),
    "status is bytes": wsgi(lambda: [b"x"], b"200 OK"),
    "status is a number": wsgi(lambda: [b"x"], 200),
    "status is empty": wsgi(lambda: [b"x"], ""),
    "status is no number": wsgi(lambda: [b"x"], "\u00b200 OK"),
    "headers are not strings": wsgi(lambda: [b"x"], headers=[(b"a", 3), None]),
}


async def asgi_fine(scope: Any, receive: Any, send: Any) -> None:
    burn()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


def asgi(message: Any) -> Callable[..., Any]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        burn()
        await send(message)
        await send({"type": "http.response.body", "body": b"x"})

    return app


async def asgi_raises(scope: Any, receive: Any, send: Any) -> None:
    burn()
    raise KeyError("before routing")


async def asgi_silent(scope: Any, receive: Any, send: Any) -> None:
    burn()


START = {"type": "http.response.start"}
ASGI = {
    "fine": asgi_fine,
    "raises": asgi_raises,
    "silent": asgi_silent,
    "no status": asgi(START),
    "status is text": asgi({**START, "status": "teapot"}),
    "status is None": asgi({**START, "status": None}),
    "headers are not bytes": asgi({**START, "status": 200, "headers": [("a", 3)]}),
    "no type": asgi({}),
    "no message": asgi(None),
}


def serve_asgi(app: Any) -> Steps:
    """What a server sees of one request: messages and errors, in order."""
    seen: Steps = []

    async def send(message: Any) -> None:
        seen.append(message)
        if not isinstance(message, dict) or "type" not in message:
            raise AssertionError("the server refuses this message")

    try:
        asyncio.run(app({"type": "http", "method": "GET"}, None, send))
    except Exception as error:
        seen.append((type(error), str(error)))
    return seen


FUNCTIONS: dict[str, dict[str, Any]] = {
    "nothing fails": {},
    "template raises": {"template": raises},
    "template is bytes": {"template": lambda carrier: b"/x"},
    "tenant raises": {"tenant": raises},
    "tenant is bytes": {"tenant": lambda carrier: b"x"},
    "tenant is a number": {"tenant": lambda carrier: 3},
}


@pytest.mark.slow
@pytest.mark.parametrize("broken", FUNCTIONS)
@pytest.mark.parametrize(
    ("serve", "kind", "app"),
    [
        *(
            pytest.param(serve_wsgi, StroboscopeWSGI, a, id=f"w {i}")
            for i, a in WSGI.items()
        ),
        *(
            pytest.param(serve_asgi, StroboscopeASGI, a, id=f"a {i}")
            for i, a in ASGI.items()
        ),
    ],
)
def test_the_response_is_the_one_without_us(
    serve: Any, kind: Any, app: Any, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls, chunks and errors are equal under sampling; a failure is logged once."""
    options = dict(FUNCTIONS[broken])
    template = {"template": options.pop("template")} if "template" in options else {}
    settings = Settings(**options)
    expected = serve(app)

    window = engine.open_window(250)
    try:
        wrapped = kind(app, settings, **template)
        found = [serve(wrapped) for _ in range(2)]
    finally:
        window.close()

    assert found == [expected, expected]
    ours = [
        r for r in caplog.records if r.name == "stroboscope" and r.module == "observed"
    ]
    assert len(ours) == (broken != "nothing fails")
    assert wrapped.labeller.failures >= len(ours)


def ended(options: dict[str, Any], template: Any = lambda carrier: "/x") -> Any:
    """The final labels of one finished GET."""
    request = Observed(Labeller(Settings(**options), template), {}, "GET")
    request.ended_ns = request.began_ns + 1
    return dict(request.labels() or {})


def test_a_failing_function_costs_its_own_label_only() -> None:
    """No endpoint is better than a wrong one, and the other labels stay."""
    rest = {"method": "GET", "latency": "<=100ms"}

    assert ended({}, raises) == rest
    assert ended({"tenant": raises}) == {**rest, "endpoint": "/x"}


def test_surrogates_become_valid_text() -> None:
    """A tenant and a template from undecodable bytes still make a profile."""
    found = ended({"tenant": lambda c: "a\udcff"}, lambda c: "/\ud800")

    assert found["tenant"] == "a?"
    assert found["endpoint"] == "/?"


def test_a_million_tenants_leave_a_bounded_number_of_labels() -> None:
    """A function that never repeats itself makes a few buckets and `other`."""
    numbers = iter(range(100_000))
    settings = Settings(tenant=lambda c: f"t{next(numbers)}", tenant_top=3)
    labeller = Labeller(settings, lambda c: "/x")

    found = {
        dict(Observed(labeller, {}, "GET").labels() or {})["tenant"]
        for _ in range(50_000)
    }

    assert len(found) == 4


def test_the_tenant_function_is_called_for_sampled_requests_only_and_once() -> None:
    """At rest it costs nothing; a slow one is paid for once per request."""
    called: list[object] = []

    def tenant(carrier: object) -> str:
        called.append(carrier)
        return "t"

    async def work(scope: Any, receive: Any, send: Any) -> None:
        return None

    async def busy(scope: Any, receive: Any, send: Any) -> None:
        burn()
        assert current()["tenant"] == "t"

    asyncio.run(
        StroboscopeASGI(work, Settings(tenant=tenant))({"type": "http"}, None, None)
    )  # type: ignore[arg-type]
    assert called == []

    asyncio.run(
        StroboscopeASGI(busy, Settings(tenant=tenant))({"type": "http"}, None, None)
    )  # type: ignore[arg-type]
    assert len(called) == 1


def test_a_block_around_a_yield_holds_for_the_rest_of_the_stream() -> None:
    """A WSGI body keeps its own labels from step to step, and lends them to nobody."""
    seen: list[dict[str, str]] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        with do(step="body"):
            for _ in range(2):
                seen.append(dict(current()))
                yield b"x"
        seen.append(dict(current()))

    ours: Any = StroboscopeWSGI(app, template=lambda environ: "/s")
    bodies = [ours({"REQUEST_METHOD": "GET"}, None) for _ in range(2)]
    for _ in range(2):
        for body in bodies:
            next(body)
            assert dict(current()) == {}
    for body in bodies:
        assert list(body) == []
        body.close()

    request = {"endpoint": "/s", "method": "GET"}
    assert seen == [{**request, "step": "body"}] * 4 + [request] * 2


def test_a_finished_request_leaves_nothing_to_the_collector() -> None:
    """Cell and request do not hold each other once the response is over."""

    async def work(scope: Any, receive: Any, send: Any) -> None:
        return None

    ours: Any = StroboscopeASGI(work)

    async def many() -> int:
        await ours({"type": "http"}, None, None)
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                await ours({"type": "http"}, None, None)
            return gc.collect()
        finally:
            gc.enable()

    assert asyncio.run(many()) == 0


def test_the_cap_on_label_sets_is_the_settings_one() -> None:
    """Where the middleware is made, its cap holds; beyond it all is `(overflow)`."""
    before = TABLE.stats()
    Labeller(Settings(label_sets=before.alive + 1, label_prefix="app."), lambda c: None)
    held = [TABLE.intern({"cap": str(i)}) for i in range(before.alive + 9)]

    after = TABLE.stats()

    assert after.cap == before.alive + 1
    assert dict(held[-1]) == {"app.endpoint": "(overflow)"}
    assert after.overflowed > before.overflowed


def test_merging_beyond_the_cap_gives_overflow_and_is_counted() -> None:
    """A set that could not be kept is counted, and held sets merge to held sets."""
    table = LabelTable(cap=3)
    a, b, ab = (table.intern(x) for x in ({"a": "1"}, {"b": "1"}, {"a": "1", "b": "1"}))

    assert table.merge([a, b]) is ab
    c = table.merge([a])
    assert c is a
    assert table.merge([b, table.overflow]) is table.overflow
    assert table.stats().overflowed == 1


def test_refused_and_failed_labels_are_shown(caplog: pytest.LogCaptureFixture) -> None:
    """/debug/labels has the counters."""
    before = TABLE.stats()
    ended({"tenant": raises})

    assert TABLE.stats().failed == before.failed + 1


def test_the_prefix_is_for_request_labels_only() -> None:
    """Constant labels keep their keys."""
    found = ended({"label_prefix": "app.", "labels": {"role": "web"}})

    assert found == {
        "app.endpoint": "/x",
        "app.method": "GET",
        "app.latency": "<=100ms",
        "role": "web",
    }


def test_request_labels_win_over_constant_ones() -> None:
    """A constant of the same key stands only where the request has none."""
    found = ended({"labels": {"endpoint": "mine", "tenant": "only"}})

    assert found["endpoint"] == "/x"
    assert found["tenant"] == "only"


@pytest.mark.parametrize("prefix", ["1", "a-", ".a", " ", "a" * 65])
def test_a_prefix_that_makes_no_key_is_refused(prefix: str) -> None:
    """It would silently drop every label."""
    with pytest.raises(SettingsError, match="label_prefix"):
        Settings(label_prefix=prefix)


def test_hashed_tenants_may_be_allow_listed_by_their_ids() -> None:
    """The list holds ids, the labels hashes, and everybody else is `other`."""
    options = {"keys": ("k" * 64,), "hash_tenants": True, "tenants": ("acme",)}

    listed = ended({**options, "tenant": lambda c: "acme"})["tenant"]
    stranger = ended({**options, "tenant": lambda c: "globex"})["tenant"]

    assert listed.startswith("t_")
    assert stranger == "other"
