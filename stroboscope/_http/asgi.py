"""Carry a request to the surface over ASGI, off the application's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from stroboscope._core import engine
from stroboscope._http.messages import (
    BODY_CAP,
    BODY_SECONDS_CAP,
    BodyTooLarge,
    Request,
    Response,
    without_host,
)
from stroboscope._http.pool import Pool
from stroboscope._types import Message, Receive, Scope, Send

#: How long a server that ends may wait for us.
FINISH_SECONDS_CAP = 2.0
#: How much of a body a server is given at a time.
PIECE_BYTES = 65_536


def read(scope: Scope, path: str) -> Request:
    """The request as a value, without its body."""
    client = scope.get("client")
    tls = (scope.get("extensions") or {}).get("tls") or {}
    return Request(
        method=scope["method"],
        path=path,
        query=scope.get("query_string", b"").decode("latin-1"),
        headers=tuple(
            (key.decode("latin-1").lower(), value.decode("latin-1"))
            for key, value in scope.get("headers", ())
        ),
        peer=str(client[0]) if client else "",
        certificate=_verified_subject(tls),
        carrier=scope,
        root=scope.get("root_path", ""),
    )


def path_of(scope: Scope) -> str:
    """The decoded path below the root path, which says whether it is ours."""
    path = without_host(scope["path"])
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def _verified_subject(tls: Mapping[str, Any]) -> str:
    """Source: the ASGI TLS extension; `client_cert_error` is None when verified."""
    if tls.get("client_cert_error") is not None:
        return ""
    return str(tls.get("client_cert_name") or "")


def hide_path(scope: Scope, kept: str) -> None:
    """Leave only `kept` of the path, for access logs that are written at the end."""
    at = scope["path"].find(kept) + len(kept)
    scope["path"] = scope["path"][:at] + "..."
    scope["raw_path"] = scope["path"].encode("latin-1", "replace")


async def read_body(receive: Receive) -> bytes:
    """The body. Raises: BodyTooLarge, TimeoutError for a client that is too slow."""
    body = bytearray()
    async with asyncio.timeout(BODY_SECONDS_CAP):
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise TimeoutError  # gone, and nobody will read the answer
            body += message.get("body", b"")
            if len(body) > BODY_CAP:
                raise BodyTooLarge
            if not message.get("more_body"):
                return bytes(body)


async def run(
    pool: Pool,
    request: Request,
    receive: Receive,
    job: Callable[[], Response],
    *,
    is_capture: bool,
) -> Response | None:
    """The job's answer; None when the pool is full. A vanished client cancels it."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Response] = loop.create_future()

    def settle(response: Response) -> None:
        if not answer.done():
            answer.set_result(response)

    def work() -> None:
        response = job()
        try:
            loop.call_soon_threadsafe(settle, response)
        except RuntimeError:  # the loop has ended; nobody waits
            pass

    if not pool.submit(work, is_capture=is_capture):
        return None
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        both: set[asyncio.Future[Any]] = {answer, watch}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            request.cancellation.cancel()
        return await answer
    except asyncio.CancelledError:
        request.cancellation.cancel()
        raise
    finally:
        watch.cancel()


async def finish(act: Callable[[], object]) -> None:
    """Do it on a thread of ours, and wait for it, not for long."""
    loop = asyncio.get_running_loop()
    is_done = asyncio.Event()

    def work() -> None:
        try:
            act()
        finally:
            loop.call_soon_threadsafe(is_done.set)

    try:
        engine.start_thread(work)
        async with asyncio.timeout(FINISH_SECONDS_CAP):
            await is_done.wait()
    except (RuntimeError, TimeoutError):  # no thread to be had, or a slow disk
        pass


async def never() -> Message:
    """A `receive` for carriers that do not learn of a client's end."""
    await asyncio.Event().wait()
    raise AssertionError


async def _disconnected(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return


async def send_response(response: Response, send: Send) -> None:
    """Send it with its length; the loop has its turn after every `PIECE_BYTES`.

    Servers copy what they are given before they write it: of 14 MB at once the loop
    stood still for 7 ms.
    """
    headers = [
        (key.lower().encode("latin-1"), value.encode("latin-1"))
        for key, value in response.all_headers()
    ]
    start = {"type": "http.response.start", "status": response.status}
    await send({**start, "headers": headers})
    body = response.body
    for at in range(0, max(len(body), 1), PIECE_BYTES):
        is_last = at + PIECE_BYTES >= len(body)
        piece = body[at : at + PIECE_BYTES]
        await send(
            {"type": "http.response.body", "body": piece, "more_body": not is_last}
        )
        if not is_last:
            await asyncio.sleep(0)
