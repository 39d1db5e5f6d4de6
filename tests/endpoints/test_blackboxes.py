"""What killed workers left is evidence on disk: it outlives whoever found it first."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from asking import authorised
from workers import KEY, Worker, wait_until, worker

from stroboscope._http.messages import Response
from stroboscope.auth.tokens import Tokens
from stroboscope.endpoints import Surface, blackboxes
from stroboscope.endpoints.blackboxes import adopt_dead
from stroboscope.settings import Settings
from stroboscope.workers.folder import Folder

pytestmark = pytest.mark.slow

#: A request that has been at work since, with a region of its own.
REQUEST = """
import stroboscope as strobe
from stroboscope._core import LABELS, LabelCell, recording
while not recording.trace_wanted():
    time.sleep(0.01)
cell = LabelCell()
cell.begin_task("GET", "http:/checkout", bytes.fromhex("{trace}") + b"12345678")
LABELS.set(cell)
region = strobe.region("db.fetch")
region.__enter__()
"""
ALL = ("profile", "trace", "admin")


def busy(trace: str) -> str:
    return REQUEST.replace("{trace}", trace)


def kill(one: Worker) -> None:
    os.kill(one.pid, signal.SIGKILL)
    one.process.wait(5)


def boxes(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The black boxes of a listing, by the process that left each."""
    return {one["parameters"]["pid"]: one for one in found if one["kind"] == "blackbox"}


def listed_by(one: Worker, *pids: int) -> dict[str, dict[str, Any]]:
    """Once those of all these are there: a worker looks on a thread of its own."""
    found: dict[str, dict[str, Any]] = {}

    def are_there() -> bool:
        found.update(boxes(one.ask("/captures", *ALL).json()))
        return found.keys() >= set(map(str, pids))

    wait_until(are_there, 10)
    return found


def beside(base: Path) -> Callable[..., Response]:
    """A sidecar of the workers in this folder: what it answers."""
    settings = Settings(keys=(KEY,), service="shop", rundir=str(base))
    surface = Surface(settings, is_worker=False)
    text = Tokens(settings).mint(ALL, 60)
    return lambda path, method="GET": surface.answer(
        authorised("/debug" + path, text, method)
    )


def test_a_box_outlives_the_worker_that_found_it(tmp_path: Path) -> None:
    """Three die by SIGKILL, each the finder of the one before; all boxes are listed,
    given, found by trace id, and dropped; in the end by a sidecar that is alone."""
    traces = [f"{number:032x}" for number in (0xA1, 0xA2, 0xA3)]
    with worker(tmp_path, busy(traces[0])) as one:
        kill(one)
    with worker(tmp_path, busy(traces[1])) as two:
        listed_by(two, one.pid)
        kill(two)
    with worker(tmp_path, busy(traces[2])) as three:
        found = listed_by(three, one.pid, two.pid)
        told = three.ask(f"/tasks/{traces[0]}", *ALL).json()["tasks"]
        path = found[str(one.pid)]["url"].removeprefix("/debug")
        given = three.ask(path, *ALL)
        chrome = three.ask(path + "?format=json", *ALL).json()
        link = three.ask("/share", *ALL, method="POST", json={"path": path}).json()
        opened = three.ask(httpx.URL(link["url"]).path.removeprefix("/debug"))
        by_number = three.ask(f"/tasks/{told[0]['id']}", *ALL).json()["tasks"]
        kill(three)
    ask = beside(tmp_path)
    left = boxes(json.loads(ask("/captures").body))
    alone = json.loads(ask(f"/tasks/{traces[2]}").body)["tasks"]
    dropped = ask(path, "DELETE")

    assert left.keys() == {str(one.pid), str(two.pid), str(three.pid)}
    assert (
        f"process {one.pid} was killed while at http:/checkout in db.fetch"
        in (found[str(one.pid)]["reason"])
    )
    assert [t["trace_id"] for t in told] == traces[:1]
    assert by_number == told
    assert told[0]["id"].startswith(f"{one.pid}-")
    assert told[0]["regions"][0]["name"] == "db.fetch"
    assert [t["trace_id"] for t in alone] == traces[2:]
    assert given.status_code == opened.status_code == 200
    assert opened.content == given.content
    assert "db.fetch" in {event.get("name") for event in chrome["traceEvents"]}
    assert dropped.status == 200
    assert json.loads(ask("/captures").body)[0]["kind"] == "blackbox"
    assert str(one.pid) not in boxes(json.loads(ask("/captures").body))


def test_a_sidecar_finds_the_request_of_a_worker_that_just_died(tmp_path: Path) -> None:
    """Nobody has looked before: who asks for the trace is answered at once."""
    trace = f"{0xB1:032x}"
    with worker(tmp_path, busy(trace)) as one:
        kill(one)

    answer = beside(tmp_path)(f"/tasks/{trace}")

    (told,) = json.loads(answer.body)["tasks"]
    assert told["id"].startswith(f"{one.pid}-")
    assert told["alive"]


def test_who_dies_while_he_adopts_leaves_it_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before or after it is written: it is kept once, and its box is gone."""
    with worker(tmp_path, busy(f"{0xC1:032x}")) as one:
        kill(one)
    settings = Settings(keys=(KEY,), service="shop", rundir=str(tmp_path))
    for is_written in (False, True):
        if (child := os.fork()) == 0:
            desk = Surface(settings, is_worker=False).desk
            adopt = desk.evidence.adopt

            def die(
                *what: Any, adopt: Any = adopt, is_written: bool = is_written
            ) -> str:
                if is_written:
                    adopt(*what)
                os.kill(os.getpid(), signal.SIGKILL)
                return ""

            desk.evidence.adopt = die  # type: ignore[method-assign]
            adopt_dead(desk)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    ask = beside(tmp_path)

    assert boxes(json.loads(ask("/captures").body)).keys() == {str(one.pid)}
    names = Folder(str(tmp_path), "shop").names()
    assert len([name for name in names if name.startswith("evidence-")]) == 1
    assert not [name for name in names if name.startswith("box-")]


def test_boxes_are_under_the_budget_of_evidence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker that dies again and again: so many an hour, the rest is counted and said,
    with what it was doing; nothing is left behind."""
    killed = []
    for number in range(3):
        with worker(tmp_path, busy(f"{number + 1:032x}")) as one:
            wait_until(lambda one=one: _has_box(tmp_path, one.pid), 5)
            kill(one)
            killed.append(one.pid)
            # Out of sight of the next worker: nobody shall look before all are there.
            box = next((tmp_path / "shop").glob(f"box-{one.pid}-*"))
            box.rename(tmp_path / box.name)
    for box in tmp_path.glob("box-*"):
        box.rename(tmp_path / "shop" / box.name)
    settings = Settings(
        keys=(KEY,), service="shop", rundir=str(tmp_path), evidence="per_hour=2"
    )
    desk = Surface(settings, is_worker=False).desk

    assert blackboxes.adopt_dead(desk) == 2
    assert desk.evidence.dropped == {"hour": 1}
    said = [r.message for r in caplog.records if "was killed while at" in r.message]
    assert all(any(f"process {pid} " in line for line in said) for pid in killed)
    assert not list((tmp_path / "shop").glob("box-*"))


def test_a_box_that_cannot_be_kept_is_counted_and_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its place may be what is missing: it makes room and tries again; then it says so."""
    with worker(tmp_path, busy(f"{0xD1:032x}")) as one:
        kill(one)
    elsewhere = tmp_path / "evidence"
    elsewhere.mkdir()
    (elsewhere / "shop").write_text("a file where the folder should be")
    settings = Settings(
        keys=(KEY,), service="shop", rundir=str(tmp_path), evidence_dir=str(elsewhere)
    )
    desk = Surface(settings, is_worker=False).desk

    assert blackboxes.adopt_dead(desk) == 0
    assert desk.evidence.dropped == {"disk": 1}
    assert str(elsewhere) in desk.evidence.state()
    assert "http:/checkout in db.fetch" in caplog.text
    assert "not kept (disk)" in caplog.text
    assert not list((tmp_path / "shop").glob("box-*"))


def _has_box(base: Path, pid: int) -> bool:
    return bool([*(base / "shop").glob(f"box-{pid}-*")])
