"""Metrics and the garbage collector, each behind its own guard."""

import gc
import json
from typing import Any

import pytest
from asking import (
    SETTINGS,
    Ask,
    FakeClock,
    admin,
    asgi_inner,
    ask_asgi,
    authorised,
    bearer,
    token,
    wsgi_inner,
)

from stroboscope.auth.tokens import Tokens
from stroboscope.endpoints import Surface
from stroboscope.formats.pprof_reader import decode
from stroboscope.integrations import asgi, wsgi


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
