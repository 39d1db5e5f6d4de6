"""Loops that stall in known ways, under a watch of their own."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from stroboscope.middleware import StroboscopeASGI
from stroboscope.settings import Settings
from stroboscope.stalls import Stall, Watch

STALL_S = 0.3


def block(seconds: float) -> None:
    time.sleep(seconds)  # the guilty line of every test here


GUILTY_LINE = block.__code__.co_firstlineno + 1


@contextmanager
def watching(threshold_ms: float = 100, slow_s: float = 0) -> Iterator[Watch]:
    watch = Watch()
    watch.begin(threshold_ms, slow_s)
    try:
        yield watch
    finally:
        watch.stop()


async def stall(seconds: float) -> None:
    block(seconds)


async def request(
    path: str, work: Callable[[], Awaitable[object]], tenant: str = ""
) -> None:
    """A request to `path`, whose template is its path, that does this work."""

    async def app(scope: object, receive: object, send: object) -> None:
        await work()

    async def nothing(*message: object) -> None: ...

    settings = Settings(tenant=lambda scope: str(scope["tenant"]), tenants=("acme",))
    labelled = StroboscopeASGI(
        app,  # type: ignore[arg-type]
        settings,
        template=lambda scope: str(scope["path"]),
    )
    scope = {"type": "http", "method": "GET", "path": path, "tenant": tenant}
    await labelled(scope, nothing, nothing)  # type: ignore[arg-type]


async def over(watch: Watch, count: int = 1) -> list[Stall]:
    """The stalls in the book, once there are so many of code."""
    for _ in range(200):
        found = [one for one in watch.book.stalls() if one.cause == "code"]
        if len(found) >= count and all(one.is_over for one in found):
            break
        await asyncio.sleep(0.01)
    return watch.book.stalls()
