"""One capture at a time, however the last one ended."""

import asyncio
import contextlib
import json
import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asking import (
    SETTINGS,
    FakeClock,
    authorised,
    token,
)

from stroboscope.endpoints import Surface
from stroboscope.endpoints.leases import GRACE_S, Leases, LeaseTaken


class Tracing:
    """Stands in for the recorder: ends when it is told to, or fails."""

    def __init__(self) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()
        self.fails = False

    def __call__(self, seconds: float, is_cancelled: Any, *about: Any) -> bytes:
        if self.fails:
            raise RuntimeError("the encoder's own")
        self.entered.set()
        end = time.monotonic() + 10
        while not (self.leave.wait(0.02) or is_cancelled()):
            assert time.monotonic() < end
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


@pytest.mark.parametrize("steps", [*range(10), 20, 40])
def test_h20_a_task_cancelled_anywhere_leaves_no_lease(steps: int) -> None:
    """Over ASGI, after so many steps of the loop, or while it collects."""
    tracing = Tracing()
    surface = Surface(SETTINGS, tracer=tracing)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/debug/trace",
        "headers": [
            (b"host", b"localhost"),
            (b"authorization", f"Bearer {token('trace')}".encode()),
        ],
    }

    async def receive() -> Any:
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        pass

    async def main() -> None:
        task = asyncio.ensure_future(surface.asgi(scope, receive, send))
        for _ in range(steps):
            await asyncio.sleep(0 if steps < 20 else 0.002)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
    # A thread that was asked before the end may still take it, and gives it back.
    time.sleep(0.25)
    assert surface.desk.leases.current() is None

    tracing.leave.set()
    assert surface.answer(authorised("/debug/trace", token("trace"))).status == 200


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
