"""The machine's clock is set, an hour forward or back; time itself goes on as before."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from asking import SETTINGS, ask_wsgi, bearer, token, wsgi_inner

from stroboscope._http.messages import Response
from stroboscope.auth.tokens import SKEW_S, Tokens
from stroboscope.endpoints.captures import AGE_S, Capture, Captures
from stroboscope.endpoints.leases import GRACE_S, Leases, LeaseTaken
from stroboscope.endpoints.snapshots import Snapshots
from stroboscope.errors import Unauthenticated
from stroboscope.formats.pprof_reader import decode
from stroboscope.integrations import wsgi
from stroboscope.knobs import Knob, Knobs, whole
from stroboscope.workers.folder import Folder

STEPS_S = (3600.0, -3600.0)


class Clock:
    """Two readings that have nothing in common."""

    def __init__(self) -> None:
        self.wall_s, self.steady_s = 1_700_000_000.0, 5_000.0

    def time_s(self) -> float:
        return self.wall_s

    def monotonic_ns(self) -> int:
        return int(self.steady_s * 1e9)

    def passes(self, seconds: float) -> None:
        self.wall_s += seconds
        self.steady_s += seconds


@pytest.mark.parametrize("step_s", STEPS_S)
def test_h20_a_step_neither_frees_nor_prolongs_a_lease(
    tmp_path: Path, step_s: float
) -> None:
    """In its worker and on its host: it ends when its time has passed."""
    clock = Clock()
    folder = Folder(str(tmp_path), "shop")
    ours, others = (Leases(clock, folder) for _ in range(2))
    with ours.hold("trace", "me", 10.0):
        clock.wall_s += step_s
        for each in (ours, others):
            with pytest.raises(LeaseTaken) as taken, each.hold("trace", "you", 1.0):
                pass
            assert taken.value.retry_after_s == 10
            held = each.current()
            assert held is not None
            assert held[1] == pytest.approx(10.0)
        clock.passes(10.0 + GRACE_S + 0.1)
        with others.hold("trace", "you", 1.0):
            pass
    assert ours.current() is None


@pytest.mark.parametrize("step_s", STEPS_S)
def test_h33_a_step_neither_ends_nor_prolongs_an_override(step_s: float) -> None:
    """What is left is what is left."""
    clock = Clock()
    knobs = Knobs([Knob("rate", 100, whole(1, 1000), {}, "")], clock)
    knobs.change({"rate": 7}, 60.0, None)
    clock.passes(10.0)
    clock.wall_s += step_s

    assert knobs.get("rate") == 7
    assert knobs.describe()["rate"]["expires_in"] == pytest.approx(50.0)
    clock.passes(50.1)
    knobs.expire()
    assert knobs.get("rate") == 100


@pytest.mark.parametrize("step_s", STEPS_S)
def test_a_step_neither_drops_nor_prolongs_a_capture(step_s: float) -> None:
    """Nor what is said of its end."""
    clock = Clock()
    captures = Captures(clock)
    captures.keep(Capture("1", "profile", "/pprof/heap", Response(200, b"x")))
    clock.passes(AGE_S / 2)
    clock.wall_s += step_s

    (kept,) = captures.all()
    assert captures.get("1") == kept
    assert kept.ends_s - clock.time_s() == pytest.approx(AGE_S / 2)
    clock.passes(AGE_S / 2 + 1)
    assert captures.all() == []


@pytest.mark.parametrize("step_s", STEPS_S)
def test_tokens_live_by_the_machines_clock(step_s: float) -> None:
    """On purpose, for who mints them is another machine: forward they are over, back
    they are of the future by more than the skew; when the clock is right, they are good."""
    clock = Clock()
    tokens = Tokens(SETTINGS, clock)
    minted = tokens.mint(("profile",), 600)
    clock.wall_s += step_s
    with pytest.raises(Unauthenticated, match=r"expired|future"):
        tokens.verify(minted)
    clock.wall_s -= step_s + SKEW_S / 2

    assert tokens.verify(minted).scopes == {"profile"}


@contextmanager
def steps_soon(
    monkeypatch: pytest.MonkeyPatch, step_s: float
) -> Iterator[Callable[[], bool]]:
    """The process's own wall clock is set in 0.2 s; whether it was."""
    begun_s, real, real_ns = time.monotonic(), time.time, time.time_ns
    done = threading.Event()

    def shift_s() -> float:
        if time.monotonic() < begun_s + 0.2:
            return 0.0
        done.set()
        return step_s

    monkeypatch.setattr(time, "time", lambda: real() + shift_s())
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + int(shift_s() * 1e9))
    yield done.is_set


@pytest.mark.parametrize("path", ["heap", "mutex", "profile"])
@pytest.mark.parametrize("step_s", STEPS_S)
def test_a_step_in_a_capture_is_not_in_its_duration(
    monkeypatch: pytest.MonkeyPatch, step_s: float, path: str
) -> None:
    """A rate per second is of the seconds that passed."""
    app = wsgi.Stroboscope(wsgi_inner, SETTINGS)
    minted = bearer(token())
    with steps_soon(monkeypatch, step_s / 2000) as has_stepped:  # tokens stay good
        answer = ask_wsgi(f"/debug/pprof/{path}?seconds=0.4", minted, app=app)
        assert has_stepped()

    assert answer.status == 200
    assert 0.15 < decode(answer.body).duration_ns / 1e9 < 1.2


@pytest.mark.parametrize("step_s", STEPS_S)
def test_h22_an_old_walk_is_not_given_out_as_new(step_s: float) -> None:
    """After a step back, and none is made twice after one forward."""
    clock, walks = Clock(), []

    def walk() -> object:
        walks.append(clock.steady_s)
        return walks

    snapshots = Snapshots(walk, clock)  # type: ignore[arg-type]
    snapshots.get(is_fresh=False)
    clock.wall_s += step_s
    snapshots.get(is_fresh=False)
    clock.passes(2.0)
    snapshots.get(is_fresh=False)

    assert walks == [5_000.0, 5_002.0]
