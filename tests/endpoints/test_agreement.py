"""One set of knobs, one list of revocations, one lease for all workers of a host."""

import os
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest
from asking import FakeClock
from workers import KEY, wait_until, worker, workers

from stroboscope.auth.revocation import Revocations
from stroboscope.auth.tokens import Tokens
from stroboscope.endpoints.agreement import HOST, PROCESS, Agreement
from stroboscope.knobs import Knob, Knobs, whole
from stroboscope.settings import Settings
from stroboscope.workers.folder import Folder

pytestmark = pytest.mark.slow


class Side:
    """One worker's part of the agreement, on a clock of its own reading."""

    def __init__(self, base: Path | None, clock: FakeClock) -> None:
        knob = Knob("rate", 100, whole(1, 1000), {}, "")
        self.knobs = Knobs((knob,), clock)
        self.told: list[int] = []
        self.knobs.on_change("rate", self.told.append)
        self.revocations = Revocations()
        folder = None if base is None else Folder(str(base), "shop")
        self.agreement = Agreement(self.knobs, self.revocations, folder)


def test_a_change_holds_for_all(tmp_path: Path) -> None:
    """Who looks has it, with the time that is left, and tells its listeners once."""
    clock = FakeClock()
    one, two = Side(tmp_path, clock), Side(tmp_path, clock)

    assert one.agreement.change({"rate": 7}, 60.0, 1) == HOST
    two.agreement.adopt()
    two.agreement.adopt()
    clock.now_s += 59
    late = Side(tmp_path, clock)
    late.agreement.adopt()

    assert two.knobs.get("rate") == late.knobs.get("rate") == 7
    assert (two.told, late.told) == ([7], [7])
    assert late.knobs.describe()["rate"]["expires_in"] == 1.0
    clock.now_s += 1
    assert two.knobs.get("rate") == late.knobs.get("rate") == 100


def test_h33_a_switch_outlives_every_worker_but_not_its_time(tmp_path: Path) -> None:
    """A restart in between neither ends nor prolongs it."""
    clock = FakeClock()
    Side(tmp_path, clock).agreement.change({"rate": 7}, 60.0, None)
    clock.now_s += 30
    during = Side(tmp_path, clock)
    during.agreement.adopt()
    clock.now_s += 31
    after = Side(tmp_path, clock)
    after.agreement.adopt()

    assert during.told == [7]
    assert after.knobs.get("rate") == 100
    assert after.told == []
    assert during.knobs.expire() is None
    assert during.knobs.version == after.knobs.version == 3


def test_a_stale_writer_is_refused_whichever_worker_it_asks(tmp_path: Path) -> None:
    """`If-Match` holds across workers, expiries count, and both see one version."""
    from stroboscope.errors import KnobConflict

    clock = FakeClock()
    one, two = Side(tmp_path, clock), Side(tmp_path, clock)
    one.agreement.change({"rate": 7}, 60.0, 1)

    with pytest.raises(KnobConflict):
        two.agreement.change({"rate": 8}, 60.0, 1)
    two.agreement.change({"rate": 8}, 60.0, 2)
    one.agreement.adopt()
    clock.now_s += 61
    for side in (one, two):
        side.knobs.expire()

    assert one.knobs.version == two.knobs.version == 4
    assert one.told == [7, 8, 100]


def test_another_versions_knobs_are_left_alone(tmp_path: Path) -> None:
    """During a rolling restart: neither taken nor thrown away."""
    clock = FakeClock()
    one = Side(tmp_path, clock)
    newer = Knobs((Knob("shine", 0, whole(0, 9), {}, ""),), clock)
    folder = Folder(str(tmp_path), "shop")
    other = Agreement(newer, Revocations(), folder)

    other.change({"shine": 5}, None, None)
    one.agreement.change({"rate": 7}, None, None)
    newer.adopt({}, 0)
    other.adopt()

    assert newer.get("shine") == 5
    assert one.knobs.get("rate") == 7


def test_what_was_switched_before_the_machine_began_is_over(tmp_path: Path) -> None:
    """The monotonic clock began anew with it."""
    clock = FakeClock()
    Side(tmp_path, clock).agreement.change({"rate": 7}, 60.0, None)
    file = tmp_path / "shop/settings"
    file.write_text(file.read_text().replace('"boot": "', '"boot": "earlier-'))
    one = Side(tmp_path, clock)

    one.agreement.adopt()

    assert one.knobs.get("rate") == 100


def test_a_change_without_a_folder_holds_here_and_says_so(tmp_path: Path) -> None:
    """Its owner is another user, say, or the disk is full."""
    (tmp_path / "shop").mkdir(mode=0o755)
    clock = FakeClock()
    one, alone = Side(tmp_path, clock), Side(None, clock)

    assert one.agreement.change({"rate": 7}, 60.0, 1) == PROCESS
    assert one.agreement.revoke("abc") == PROCESS
    assert alone.agreement.change({"rate": 7}, 60.0, 1) == PROCESS
    assert one.knobs.get("rate") == alone.knobs.get("rate") == 7
    assert one.revocations.covers("abc", 0)


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"boot": 1}', '{"boot": "B", "overrides": 3, "version": 1}',
     '{"boot": "B", "overrides": {"rate": 3}, "version": "x"}',
     '{"boot": "B", "overrides": {"rate": ["high", null]}, "version": 3}'],
)  # fmt: skip
def test_garbage_in_the_folder_changes_nothing(tmp_path: Path, text: str) -> None:
    """It is logged, and the next change replaces it."""
    clock = FakeClock()
    one = Side(tmp_path, clock)
    boot = one.agreement._boot
    Folder(str(tmp_path), "shop").write(
        "settings", text.replace('"B"', f'"{boot}"').encode()
    )

    one.agreement.adopt()

    assert one.knobs.get("rate") == 100
    assert one.agreement.change({"rate": 7}, 60.0, None) == HOST


def test_h33_a_put_on_one_worker_holds_in_all_within_a_second(tmp_path: Path) -> None:
    """Seen in each by itself, and gone in each when its time is over."""
    with workers(tmp_path, "", "") as (one, two):

        def rates() -> set[int]:
            return {
                each.ask(f"/settings?worker={each.pid}", "metrics").json()["settings"][
                    "cpu_hz"
                ]["value"]
                for each in (one, two)
            }

        put = one.ask(
            "/settings", "admin", method="PUT", json={"cpu_hz": 50, "ttl": "2s"}
        )
        assert put.json()["holds_for"] == HOST
        assert wait_until(lambda: rates() == {50}, 1.0) < 1.0
        stale = two.ask(
            "/settings",
            "admin",
            method="PUT",
            json={"cpu_hz": 60},
            headers={"If-Match": '"1"'},
        )
        with worker(tmp_path) as late:
            adopted = late.ask("/settings", "metrics").json()["settings"]["cpu_hz"]
        wait_until(lambda: rates() == {100}, 4.0)

    assert stale.status_code == 409
    assert adopted["value"] == 50
    assert 0 < adopted["expires_in"] <= 2


def test_h33_the_engine_of_an_unasked_worker_hears_of_a_change(tmp_path: Path) -> None:
    """Nobody asks it: its own thread looks, twice a second."""
    code = f"""
from pathlib import Path
tell = lambda hz: Path({str(tmp_path)!r}, str(hz)).touch()
surface.desk.knobs.on_change("cpu_hz", tell)
"""
    with workers(tmp_path, "", code) as (one, _):
        one.ask("/settings", "admin", method="PUT", json={"cpu_hz": 50, "ttl": "1s"})
        wait_until(lambda: (tmp_path / "50").exists(), 1.0)
        wait_until(lambda: (tmp_path / "100").exists(), 2.5)


def test_h09_a_revocation_on_one_worker_holds_in_all(tmp_path: Path) -> None:
    """Single ids and everything before now; also for workers that come later."""
    tokens = Tokens(Settings(keys=(KEY,), service="shop"))
    text = tokens.mint(["metrics"], 60)
    token_id = tokens.verify(text).token_id
    bearer = {"Authorization": f"Bearer {text}"}
    with workers(tmp_path, "", "") as (one, two):
        before = two.ask("/labels", headers=bearer).status_code
        done = one.ask("/revoke", "admin", method="POST", json={"id": token_id})
        took = wait_until(
            lambda: two.ask("/labels", headers=bearer).status_code == 401, 1.0
        )
        with worker(tmp_path) as late:
            after = late.ask("/labels", headers=bearer).status_code

    assert done.json()["holds_for"] == HOST
    assert (before, after) == (200, 401)
    assert took < 1.0


def test_h19_one_forensic_capture_on_a_host(tmp_path: Path) -> None:
    """All workers take part in it; a second is refused by each of them."""
    with workers(tmp_path, "burn('a')", "burn('b')") as (one, two):
        answers = {}

        def capture() -> None:
            answers["first"] = one.ask("/pprof/profile?seconds=1.5&forensic=1")

        thread = threading.Thread(target=capture)
        thread.start()
        time.sleep(0.6)
        refused = [each.ask("/pprof/profile?forensic=1") for each in (one, two)]
        thread.join()

    assert answers["first"].headers["X-Stroboscope-Workers"] == "2/2"
    assert [one.status_code for one in refused] == [429, 429]
    assert {one.text for one in refused} == {"a forensic profile is being taken\n"}
    assert all(int(one.headers["Retry-After"]) >= 1 for one in refused)


def test_h19_one_trace_on_a_host(tmp_path: Path) -> None:
    """Whichever worker takes it: the others, and itself, refuse a second meanwhile."""
    with workers(tmp_path, "burn('a')", "") as (one, two):
        answers = {}

        def capture() -> None:
            answers["first"] = one.ask("/trace?seconds=1.5", "trace")

        thread = threading.Thread(target=capture)
        thread.start()
        wait_until(lambda: (one.folder / "lease").exists(), 5.0)
        refused = [each.ask("/trace?seconds=0.1", "trace") for each in (two, one)]
        thread.join()
        after = two.ask("/trace?seconds=0.1", "trace")

    assert (answers["first"].status_code, after.status_code) == (200, 200)
    assert [one.status_code for one in refused] == [429, 429]
    assert {one.text for one in refused} == {"a trace is being taken\n"}
    assert all(int(one.headers["Retry-After"]) >= 1 for one in refused)


def test_h20_a_killed_workers_lease_is_free_at_once(tmp_path: Path) -> None:
    """The next capture on another worker begins within a second."""
    with workers(tmp_path, "", "") as (lost, other):

        def capture() -> None:
            with pytest.raises(httpx.RemoteProtocolError):
                lost.ask("/pprof/profile?seconds=20&forensic=1")

        thread = threading.Thread(target=capture)
        thread.start()
        wait_until(lambda: (lost.folder / "lease").exists(), 5.0)
        os.kill(lost.pid, signal.SIGKILL)
        thread.join()
        path = "/pprof/profile?seconds=0.1&forensic=1"
        took = wait_until(lambda: other.ask(path).status_code == 200, 3.0)

    assert took < 1 + 2  # its own time, and what a machine full of tests adds
