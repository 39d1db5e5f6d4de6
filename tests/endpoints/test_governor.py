"""What we cost is measured, bounded, and not in the profile."""

import threading
from dataclasses import replace

import pytest
from asking import (
    KEY,
    SETTINGS,
    FakeClock,
    authorised,
    request,
    token,
)

from stroboscope._core import engine
from stroboscope._http.messages import Request
from stroboscope.endpoints import Surface
from stroboscope.formats.pprof_reader import decode
from stroboscope.settings import Settings


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
