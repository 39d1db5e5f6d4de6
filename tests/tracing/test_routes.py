"""How C names a recorded request by itself: what Python would say, or it is asked."""

import asyncio
import os
import random
import resource
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import stroboscope as strobe
from stroboscope._core import LABELS, LabelCell, recording
from stroboscope.formats.timeline import Timeline
from stroboscope.middleware import StroboscopeASGI
from stroboscope.middleware.routes import starlette_template
from stroboscope.settings import Settings
from stroboscope.tracing import Recorder, recorder

route_template = recording.route_template


async def hello(request: Any = None) -> Any:
    return PlainTextResponse("hello")


async def asked_of(app: Any, path: str, headers: list[Any]) -> dict[str, Any]:
    """The scope as a request leaves it."""
    scope: dict[str, Any] = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1"},
        **{"method": "GET", "scheme": "http", "path": path, "raw_path": path.encode()},
        **{"query_string": b"", "root_path": "", "headers": headers, "state": {}},
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    await app(scope, receive, send)
    return scope


def starlette_app() -> Starlette:
    inner = Starlette(routes=[Route("/{name}", hello)])
    return Starlette(routes=[Route("/item/{item:int}", hello), Mount("/in", inner)])


def fastapi_app() -> FastAPI:
    app, router = FastAPI(), APIRouter(prefix="/shop/{shop}")
    app.get("/item/{item}")(lambda item: item)
    router.get("/shelf/{shelf}")(lambda shop, shelf: shelf)
    app.include_router(router, prefix="/v1")
    return app


@pytest.mark.parametrize(
    ("make", "path", "template"),
    [
        (starlette_app, "/item/7", "/item/{item}"),
        (fastapi_app, "/item/7", "/item/{item}"),
        (fastapi_app, "/v1/shop/a/shelf/b", "/v1/shop/{shop}/shelf/{shelf}"),
        (starlette_app, "/in/ann", None),
        (starlette_app, "/nowhere", None),
    ],
)
def test_a_plain_route_is_read_in_c(
    make: Callable[[], Any], path: str, template: str | None
) -> None:
    """As Python reads it; of mounts and of what matched nothing Python is asked."""
    scope = asyncio.run(asked_of(make(), path, []))

    assert route_template(scope) == template
    assert template is None or starlette_template(scope) == template


class Raising:
    @property
    def path_format(self) -> str:
        raise RuntimeError("the application's own")


@pytest.mark.parametrize(
    "scope",
    [
        None,
        [],
        {},
        {"route": None},
        {"route": object()},
        {"route": Raising()},
        {"route": SimpleNamespace(path_format=7)},
        {"route": SimpleNamespace(path_format="")},
        {"route": SimpleNamespace(path_format="/x", routes=[], app=None)},
        {"route": SimpleNamespace(path_format="/x"), "app_root_path": ""},
        {"route": SimpleNamespace(path_format="/x"), "fastapi": 7},
        {"route": Raising(), "fastapi": {"effective_route_context": Raising()}},
    ],
)
def test_what_is_unusual_is_left_to_python(scope: object) -> None:
    """No exception leaves it, whatever a framework put there."""
    assert route_template(scope) is None


def begun(scope: dict[str, Any]) -> LabelCell:
    """A recorded request that runs here, within a region that was over at once."""
    cell = LabelCell()
    cell.begin_task("GET", None, scope)
    cell.scope = scope
    LABELS.set(cell)
    try:
        with strobe.region("part"):
            pass
    finally:
        LABELS.set(None)
    return cell


def names(flight: Recorder) -> list[str]:
    block = flight.snapshot()
    assert block is not None
    line = Timeline.read(block)
    return [line.name(task.name) for task in line.tasks()]


def test_a_name_is_of_the_route_at_the_end(flight: Recorder) -> None:
    """A region early on may see an outer route, or none: the last one counts."""
    scopes: list[dict[str, Any]] = [
        {"route": SimpleNamespace(path_format="/a")},
        {},
        {},
    ]
    cells = [begun(scope) for scope in scopes]
    running = names(flight)
    for scope in scopes[:2]:
        scope["route"] = SimpleNamespace(path_format="/b")
    for cell in cells:
        cell.end_request("http:(unmatched)", 200)

    assert running == ["http:/a", "", ""]
    assert names(flight) == ["http:/b", "http:/b", "http:(unmatched)"]
    assert [cell.scope for cell in cells] == [None] * 3


def test_equal_templates_of_different_routes_have_one_name(flight: Recorder) -> None:
    """And a template that is freed leaves its name to no other one."""
    paths = [f"/{number}/" + "x" * 50 for number in range(200)]
    for path in paths * 2:
        route = SimpleNamespace(path_format=path + "y")
        begun({"route": route}).end_request("http:(unmatched)", 200)

    assert names(flight) == [f"http:{path}y" for path in paths * 2]


class Closing:
    @property
    def path_format(self) -> str:
        recorder.close()
        return "/closed"


def test_a_recorder_closed_by_a_route_is_survived(flight: Recorder) -> None:
    """By a property of the framework's, while the name is asked for."""
    begun({"route": Closing()}).end_request("http:(unmatched)", 200)
    flight.set_flight(True)
    scope: dict[str, Any] = {}
    cell = begun(scope)
    scope["route"] = Closing()
    cell.end_request("http:(unmatched)", 200)

    assert recording.trace_wanted() == 0


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


KERNEL = tuple(int(part) for part in os.uname().release.split(".")[:2])


@pytest.mark.skipif(
    KERNEL < (5, 14),
    reason="the kernel is older than 5.14: it finds no pages in advance",
)
def test_no_request_waits_for_a_page_of_the_ring(
    flight: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is there before: to find a page takes longer than to write to it."""
    recorder.close()
    done: list[object] = []
    monkeypatch.setattr(
        "stroboscope._core.engine.start_thread", lambda target: done.append(target())
    )
    recorder.configure("shop", 4 << 20)
    recorder.set_flight(True)
    assert done == [True]

    before = faults()
    with strobe.task("long"):
        for _ in range(4 << 20 >> 6):
            with strobe.region("x"):
                pass

    assert faults() - before < 100  # of 1024 pages


class Crowd:
    """Requests of every kind through the real middleware, told apart by their trace id."""

    #: Path, the name its task ends with, and its status.
    KINDS = (
        ("/item/7", "http:/item/{item}", 200),
        ("/shop/a/shelf/b", "http:/shop/{shop}/shelf/{shelf}", 200),
        ("/in/ann", "http:/in/{name}", 200),
        ("/in/deep/3", "http:/in/deep/{n}", 200),
        ("/nowhere/x", "http:(unmatched)", 404),
        ("/fails/1", "http:/fails/{n}", 500),
        ("/cancelled/1", "http:/cancelled/{n}", 500),
    )

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.expected: dict[str, tuple[str, int]] = {}
        deep = Mount("/deep", Starlette(routes=[Route("/{n}", self.works)]))
        inner = Starlette(routes=[deep, Route("/{name}", self.works)])
        routes = [
            Route("/item/{item}", self.works),
            Route("/shop/{shop}/shelf/{shelf}", self.works),
            Mount("/in", inner),
            Route("/fails/{n}", self.fails),
            Route("/cancelled/{n}", self.waits),
        ]
        self.app = StroboscopeASGI(self.early(Starlette(routes=routes)), Settings())

    def early(self, app: Any) -> Any:
        """A middleware with a region before there is a route, now and then."""

        async def run(scope: Any, receive: Any, send: Any) -> None:
            if self.random.random() < 0.5:
                with strobe.region("early"):
                    await asyncio.sleep(0)
            await app(scope, receive, send)

        return run

    async def works(self, request: Any) -> Any:
        async def child() -> None:
            with strobe.region("child"):
                await asyncio.sleep(0)

        with strobe.region("part"):
            await asyncio.gather(child(), child())
        return PlainTextResponse("done")

    async def fails(self, request: Any) -> Any:
        with strobe.region("part"):
            await asyncio.sleep(0)
            raise LookupError

    async def waits(self, request: Any) -> Any:
        with strobe.region("part"):
            await asyncio.sleep(60)

    async def ask(self, number: int) -> None:
        path, name, status = self.random.choice(self.KINDS)
        trace = f"{number + 1:032x}"
        self.expected[trace] = name, status
        header = (b"traceparent", f"00-{trace}-00000000000000ff-01".encode())
        asked = asyncio.create_task(
            asked_of(self.app, path, [(b"host", b"localhost"), header])
        )
        if status == 500:
            for _ in range(20):
                await asyncio.sleep(0)
            asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)


def test_each_of_a_thousand_requests_has_its_own_name(flight: Recorder) -> None:
    """Whatever runs beside it, however it is routed and however it ends."""
    crowd = Crowd(seed=5)

    async def all_at_once() -> None:
        await asyncio.gather(*(crowd.ask(number) for number in range(1000)))

    asyncio.run(all_at_once())

    block = flight.snapshot()
    assert block is not None
    line = Timeline.read(block)
    found = {
        task.trace_id.hex(): (line.name(task.name), task.status)
        for task in line.tasks()
    }
    assert found == crowd.expected
