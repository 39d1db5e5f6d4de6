"""A capture does not hold up the application's loop."""

import asyncio
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from asking import KEY, authorised, token

from stroboscope import do
from stroboscope._http.asgi import PIECE_BYTES, send_response
from stroboscope._http.messages import Response
from stroboscope.endpoints import Surface
from stroboscope.settings import Settings

ROUNDS = 7


async def longest_delay_s(until: Callable[[], bool]) -> float:
    """How late the loop woke at worst, while it works like an application."""
    worst_s = 0.0
    while not until():
        end_s = time.perf_counter() + 0.001
        with do(endpoint="/work"):
            while time.perf_counter() < end_s:
                sum(range(50))
        began_s = time.perf_counter()
        await asyncio.sleep(0.0005)
        worst_s = max(worst_s, time.perf_counter() - began_s - 0.0005)
    return worst_s


@pytest.mark.slow
@pytest.mark.perf
@pytest.mark.parametrize(
    "path", ["/pprof/profile?seconds=0.5", "/pprof/goroutine", "/stacks", "/pprof/heap"]
)
def test_a_capture_adds_at_most_five_milliseconds(path: str) -> None:
    """To the loop's longest pause; in turn with spells of the same length at rest, at
    the median, for the machine pauses, too."""
    surface = Surface(Settings(keys=(KEY,), service="shop"))
    text = token("profile")
    held = threading.Event()
    others = [threading.Thread(target=held.wait) for _ in range(30)]
    for other in others:
        other.start()

    async def main() -> tuple[list[float], list[float]]:
        address, _, query = path.partition("?")
        asked = authorised(f"/debug{address}", text)
        rest_s, busy_s = [], []
        for _ in range(ROUNDS):
            request = type(asked)(
                asked.method, asked.path, query, asked.headers, asked.peer
            )
            answers = [asyncio.ensure_future(surface.answer_async(request))]
            began_s = time.monotonic()
            busy_s.append(await longest_delay_s(answers[0].done))
            assert answers[0].result().status == 200
            end_s = time.monotonic() + max(0.1, time.monotonic() - began_s)
            rest_s.append(await longest_delay_s(lambda end_s=end_s: _over(end_s)))
        return rest_s, busy_s

    try:
        rest_s, busy_s = asyncio.run(main())
    finally:
        held.set()
        for other in others:
            other.join()
    rest, busy = statistics.median(rest_s), statistics.median(busy_s)
    print(f"{path}: at rest {rest * 1e3:.2f} ms, captured {busy * 1e3:.2f} ms")

    assert busy - rest < 0.005


def test_a_large_answer_is_sent_in_turn_with_others() -> None:
    """To a server that takes all at once: the loop goes on after every piece."""
    body = bytes(range(256)) * 40_000
    log: list[object] = []

    async def send(message: dict[str, Any]) -> None:
        log.append(message)

    async def other() -> None:
        while True:
            log.append("turn")
            await asyncio.sleep(0)

    async def main() -> None:
        beside = asyncio.ensure_future(other())
        await asyncio.sleep(0)
        await send_response(Response(200, body), send)
        beside.cancel()

    asyncio.run(main())
    sent = [one for one in log if isinstance(one, dict)]
    start, *pieces = sent
    after = [log[log.index(one) + 1] for one in pieces[:-1]]
    assert dict(start["headers"])[b"content-length"] == str(len(body)).encode()
    assert b"".join(one["body"] for one in pieces) == body
    assert [one["more_body"] for one in pieces] == [True] * (len(pieces) - 1) + [False]
    assert max(len(one["body"]) for one in pieces) == PIECE_BYTES
    assert after == ["turn"] * (len(pieces) - 1)


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES])
def test_a_small_answer_is_sent_at_once(size: int) -> None:
    """One start, one body."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(send_response(Response(200, b"x" * size), send))

    assert [len(one.get("body", b"")) for one in sent] == [0, size]


def _over(end_s: float) -> bool:
    return time.monotonic() > end_s
