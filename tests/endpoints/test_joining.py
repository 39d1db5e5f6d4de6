"""Whoever is asked answers for all, and says who did not."""

import os
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from asking import SETTINGS, ask_asgi, ask_wsgi
from workers import KEY, Worker, worker, workers

from stroboscope.auth.keys import generate_key
from stroboscope.auth.tokens import Grant, Tokens
from stroboscope.endpoints.gate import PEER_SCHEME
from stroboscope.formats.pprof_reader import decode
from stroboscope.formats.profile import Profile
from stroboscope.settings import Settings

pytestmark = pytest.mark.slow

HEADER = "X-Stroboscope-Workers"
BURN_A, BURN_B = "burn('a')", "burn('b')"


def shares(profile: Profile, *keys: str) -> Counter[tuple[str, ...]]:
    """CPU nanoseconds by the values of these labels."""
    found = Counter[tuple[str, ...]]()
    for sample in profile.samples:
        labels = dict(sample.labels)
        found[tuple(labels.get(key, "") for key in keys)] += sample.values[1]
    return found


def pids(answer: httpx.Response) -> set[str]:
    samples = decode(answer.content).samples
    return {dict(sample.labels).get("pid", "") for sample in samples}


def test_h42_a_profile_is_of_all_workers(tmp_path: Path) -> None:
    """Each worker's samples carry its pid; the label shares are the sum of the parts."""
    with workers(tmp_path, BURN_A, BURN_B) as (one, two):
        answer = one.ask("/pprof/profile?seconds=1")

    profile = decode(answer.content)
    assert answer.headers[HEADER] == "2/2"
    assert "workers: 2/2" in profile.comments
    found = shares(profile, "pid", "work")
    burnt = {key for key, ns in found.items() if key[1]}
    assert burnt == {(str(one.pid), "a"), (str(two.pid), "b")}
    assert all(found[key] > 0.1e9 for key in burnt)


def test_a_flat_profile_has_no_pid(tmp_path: Path) -> None:
    """What two workers did alike adds up."""
    with workers(tmp_path, "", "") as (one, _):
        answer = one.ask("/pprof/goroutine?merge=flat")
        by_pid = one.ask("/pprof/goroutine")

    flat, parted = decode(answer.content), decode(by_pid.content)
    assert pids(answer) == {""}
    assert len(pids(by_pid)) == 2
    assert [sample.values for sample in flat.samples] == [(2,)]  # the main threads
    assert [sample.values for sample in parted.samples] == [(1,), (1,)]


@pytest.mark.parametrize("answers_to", ["stopped", "killed"])
def test_h42_who_does_not_answer_is_named(tmp_path: Path, answers_to: str) -> None:
    """Stopped before or killed during a capture: the others' profile, within budget."""
    with workers(tmp_path, *["burn('a', 0.3)"] * 4) as (one, two, three, lost):
        if answers_to == "stopped":
            os.kill(lost.pid, signal.SIGSTOP)
        else:
            threading.Thread(target=kill_when_asked, args=(lost,)).start()
        began = time.monotonic()
        answer = one.ask("/pprof/profile?seconds=2")
        took = time.monotonic() - began
        if answers_to == "stopped":
            os.kill(lost.pid, signal.SIGCONT)

    assert answer.status_code == 200
    assert answer.headers[HEADER] == "3/4"
    comments = decode(answer.content).comments
    assert "workers: 3/4" in comments
    assert any(note.startswith(f"worker {lost.pid} ") for note in comments)
    assert {str(each.pid) for each in (one, two, three)} <= pids(answer)
    assert str(lost.pid) not in pids(answer)
    assert took < 2 + 2 + 1


def kill_when_asked(lost: Worker) -> None:
    """In the middle of its capture."""
    while True:
        listed = lost.ask("/workers", "metrics").json()["workers"]
        if any(one["pid"] == lost.pid and one["windows"] for one in listed):
            break
        time.sleep(0.05)
    lost.process.kill()


def test_h42_who_died_before_is_not_counted(tmp_path: Path) -> None:
    """It is no worker any more, and nothing of it is missing."""
    with workers(tmp_path, "", "") as (one, lost):
        lost.process.kill()
        lost.process.wait()
        answer = one.ask("/stacks")

    assert answer.headers[HEADER] == "1/1"


@pytest.mark.parametrize("kind", ["pprof/profile", "fgprof"])
def test_captures_begin_together(kind: str, tmp_path: Path) -> None:
    """Within 50 ms in most of some attempts, with all of eight workers busy."""
    with workers(tmp_path, *["burn('a', 0.3)"] * 8) as (one, *_):
        spread_ms = []
        for _ in range(5):
            answer = one.ask(f"/{kind}?seconds=0.3", timeout=60)
            comments = decode(answer.content).comments
            (note,) = [c for c in comments if c.startswith("workers began within")]
            spread_ms.append(int(note.split()[3]))

    assert sorted(spread_ms)[2] <= 50, spread_ms


def test_only_a_worker_says_when_a_capture_begins(tmp_path: Path) -> None:
    """From a client the header is nothing; from a worker it is at most a second."""
    settings = Settings(keys=(KEY,), service="shop")
    shown = Tokens(settings).mint_peer(Grant(frozenset({"profile"}), "somebody", 0.0))
    late = {"X-Stroboscope-Start": str(time.monotonic_ns() + 60_000_000_000)}
    took_s = []
    with worker(tmp_path) as one:
        for headers in (late, late | {"Authorization": f"{PEER_SCHEME} {shown}"}):
            for path in ("/pprof/profile", "/fgprof", "/pprof/goroutine"):
                began_s = time.monotonic()
                answer = one.ask(f"{path}?seconds=1", headers=headers)
                took_s.append(time.monotonic() - began_s)
                assert answer.status_code == 200, answer.text

    assert all(1.0 <= one < 1.9 for one in took_s[:3]), took_s
    assert all(1.9 <= one < 3.5 for one in took_s[3:]), took_s


def test_one_worker_answers_for_itself(tmp_path: Path) -> None:
    """Whoever is asked hands it on; who is unknown is 404."""
    with workers(tmp_path, BURN_A, BURN_B) as (one, two):
        own = one.ask(f"/pprof/profile?seconds=0.5&worker={one.pid}")
        other = one.ask(f"/pprof/profile?seconds=0.5&worker={two.pid}")
        unknown = one.ask("/stacks?worker=1")

    assert {key[0] for key in shares(decode(own.content), "work")} <= {"", "a"}
    assert {key[0] for key in shares(decode(other.content), "work")} <= {"", "b"}
    assert other.headers["Content-Disposition"] == 'attachment; filename="profile"'
    assert (unknown.status_code, unknown.text) == (404, "Unknown worker\n")


def test_text_json_and_metrics_are_joined(tmp_path: Path) -> None:
    """Per worker, each in its own way."""
    with workers(tmp_path, "", "") as (one, two):
        text = one.ask("/stacks").text
        listed = one.ask("/stacks", headers={"Accept": "application/json"})
        browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
        shown = one.ask("/stacks", headers=browser)
        labels = one.ask("/labels", "metrics").json()
        metrics = one.ask("/metrics", "metrics").text

    both = {one.pid, two.pid}
    assert {f"=== worker {pid} ===" in text for pid in both} == {True}
    assert {entry["pid"] for entry in listed.json()} == both
    assert {f"=== worker {pid} ===" in shown.text for pid in both} == {True}
    assert set(labels["workers"]) == {str(pid) for pid in both}
    assert labels["cap"] == 512
    for pid in both:
        assert f'stroboscope_windows{{pid="{pid}"}} 0' in metrics
    assert metrics.count("# TYPE stroboscope_windows ") == 1


def test_every_worker_is_listed(tmp_path: Path) -> None:
    """With what one wants to know of it; who does not answer, with the reason."""
    with workers(tmp_path, "", "") as (one, two):
        os.kill(two.pid, signal.SIGSTOP)
        answer = one.ask("/workers", "metrics")
        os.kill(two.pid, signal.SIGCONT)

    listed = {entry["pid"]: entry for entry in answer.json()["workers"]}
    assert answer.headers[HEADER] == "1/2"
    assert listed[one.pid]["engine"] == "native"
    assert 0 < listed[one.pid]["age_s"] < 60
    assert listed[one.pid]["rss_bytes"] > 1e6
    assert "failure" in listed[two.pid]


def test_a_capture_is_found_by_way_of_any_worker(tmp_path: Path) -> None:
    """Its id names its worker; it holds what all workers answered."""
    with workers(tmp_path, "", "") as (one, two):
        taken = one.ask("/pprof/goroutine")
        name = taken.headers["X-Stroboscope-Capture"]
        listed = two.ask("/captures").json()
        given = two.ask(f"/captures/{name}")
        dropped = two.ask(f"/captures/{name}", "admin", method="DELETE")
        gone = one.ask(f"/captures/{name}")
        unknown = two.ask("/captures/1-nothing")

    assert [(entry["pid"], entry["id"]) for entry in listed] == [(one.pid, name)]
    assert given.content == taken.content
    assert pids(given) == {str(one.pid), str(two.pid)}
    assert dropped.json() == {"dropped": name}
    assert (gone.status_code, unknown.status_code) == (404, 404)


def test_a_base_is_found_by_way_of_any_worker(tmp_path: Path) -> None:
    """Whole, whatever is asked of the difference: its worker cuts nothing from it."""
    nap = "for _ in range(5): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    forms = ("", "&format=folded", "&top=5", "&tagfocus=kind=task")
    with workers(tmp_path, nap, nap) as (one, two):
        name = one.ask("/pprof/threadcreate").headers["X-Stroboscope-Capture"]
        found = [two.ask(f"/pprof/threadcreate?base={name}{form}") for form in forms]
        wrong = two.ask(f"/pprof/goroutine?base={name}")

    assert [answer.status_code for answer in found] == [200] * len(forms), found
    assert decode(found[0].content).samples == []
    assert found[1].text == ""
    assert wrong.status_code == 400


def test_h42_another_copy_is_no_worker_of_ours(tmp_path: Path) -> None:
    """Two copies of a service with different keys answer for themselves, and say so."""
    with (
        worker(tmp_path, BURN_A) as one,
        worker(tmp_path, BURN_B, key=generate_key()) as other,
    ):
        for _ in range(12):  # more than failures are let through
            answer = one.ask("/pprof/goroutine")
        theirs = other.ask("/pprof/goroutine")

    for found, left_out in ((answer, other), (theirs, one)):
        assert found.headers[HEADER] == "1/1"
        note = f"worker {left_out.pid} has other keys, and is left out"
        assert note in decode(found.content).comments


def test_workers_meet_while_keys_are_rotated(tmp_path: Path) -> None:
    """The new one signs with a key the old one does not have; both have one."""
    old, new = generate_key(), generate_key()
    with (
        worker(tmp_path, key=old) as one,
        worker(tmp_path, key=new, keys=(old, new)) as two,
        worker(tmp_path, key=new, keys=(new,)) as three,
    ):
        found = {each.pid: each.ask("/stacks").text for each in (one, two, three)}

    assert f"=== worker {two.pid} ===" in found[one.pid]
    assert f"=== worker {one.pid} ===" in found[two.pid]
    assert f"=== worker {three.pid} ===" in found[two.pid]
    assert f"=== worker {two.pid} ===" in found[three.pid]


def test_services_do_not_meet(tmp_path: Path) -> None:
    """Two services of one user, host and key share the run directory, not an answer."""
    with worker(tmp_path, BURN_A) as one, worker(tmp_path, BURN_B, service="other"):
        answer = one.ask("/pprof/goroutine")

    assert answer.headers[HEADER] == "1/1"


@pytest.mark.parametrize("ask", [ask_asgi, ask_wsgi])
def test_h42_what_workers_show_each_other_opens_no_other_door(ask: object) -> None:
    """By the application's port it is no credential, signed as it may be."""
    grant = Grant(frozenset({"profile"}), "somebody", 0.0)
    shown = Tokens(SETTINGS).mint_peer(grant)

    answer = ask("/debug/stacks", {"Authorization": f"{PEER_SCHEME} {shown}"})  # type: ignore[operator]
    bearer = ask("/debug/stacks", {"Authorization": f"Bearer {shown}"})  # type: ignore[operator]

    assert (answer.status, bearer.status) == (401, 401)


def test_h42_a_worker_lets_no_more_than_its_caller_was_granted(tmp_path: Path) -> None:
    """The grant travels; the scope is checked again, a token's text never travels."""
    settings = Settings(keys=(KEY,), service="shop")
    grant = Grant(frozenset({"metrics"}), "somebody", 0.0)
    shown = Tokens(settings).mint_peer(grant)
    with worker(tmp_path) as one:
        headers = {"Authorization": f"{PEER_SCHEME} {shown}"}
        good = one.ask("/labels", headers=headers)
        bad = one.ask("/stacks", headers=headers)
        anonymous = one.ask("/stacks", headers={"Authorization": ""})

    assert (good.status_code, bad.status_code) == (200, 403)
    assert anonymous.status_code == 401


def test_the_others_stop_with_the_client(tmp_path: Path) -> None:
    """Who hangs up ends the capture in every worker."""
    with workers(tmp_path, "", "") as (one, two):
        with pytest.raises(httpx.ReadTimeout):
            one.ask("/pprof/profile?seconds=30", timeout=0.4)
        time.sleep(0.6)
        windows = {
            entry["pid"]: entry["windows"]
            for entry in one.ask("/workers", "metrics").json()["workers"]
        }

    assert windows == {one.pid: 0, two.pid: 0}


def test_a_worker_that_may_not_meet_answers_for_itself(tmp_path: Path) -> None:
    """And says that it does not know of others."""
    answer = ask_asgi("/debug/stacks", _authorised())
    alone = ask_asgi(
        "/debug/stacks", _authorised(), settings=_with(SETTINGS, rundir="off")
    )

    assert answer.headers[HEADER] == "1/?"
    assert HEADER not in alone.headers


def _authorised() -> dict[str, str]:
    return {"Authorization": f"Bearer {Tokens(SETTINGS).mint(['profile'], 60)}"}


def _with(settings: Settings, **changes: object) -> Settings:
    from dataclasses import replace

    return replace(settings, **changes)  # type: ignore[arg-type]


SPIN = """
import asyncio
def spin():
    while True: pass
async def main(): spin()
threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
"""


def test_h27_a_busy_loop_delays_stacks_by_little(tmp_path: Path) -> None:
    """Through the worker's own socket, and through another one: within 0.2 s."""
    took_s: dict[str, list[float]] = {}
    with workers(tmp_path, SPIN, "") as (busy, other):
        alone = f"/stacks?worker={busy.pid}"
        for name, asked, path in (
            ("own", busy, alone),
            ("own of all", busy, "/stacks"),
            ("other", other, alone),
            ("other of all", other, "/stacks"),
        ):
            for _ in range(5):
                began_s = time.monotonic()
                answer = by_hand(asked, path)
                took_s.setdefault(name, []).append(time.monotonic() - began_s)
                assert answer.startswith(b"HTTP/1.1 200 ")
                assert b" spin " in answer
                time.sleep(0.55)  # or it would be the same walk

    assert all(sorted(some)[2] <= 0.2 for some in took_s.values()), took_s


def by_hand(one: Worker, path: str) -> bytes:
    """Without a client whose making alone takes a tenth of a second."""
    settings = Settings(keys=(one.key,), service="shop")
    text = Tokens(settings).mint(["profile"], 60)
    head = f"GET /debug{path} HTTP/1.1\r\nHost: localhost\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(str(one.socket))
        connection.sendall(f"{head}Authorization: Bearer {text}\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_a_small_answer_takes_one_thread(tmp_path: Path) -> None:
    """The connection's own: each more would wait for the GIL beside a busy loop."""
    counting = """
from stroboscope._core import engine
start = type(engine).start_thread
def counted(self, target):
    with open(sys.argv[1 + 2], "a") as file:
        print(target.__qualname__, file=file)
    start(self, target)
type(engine).start_thread = counted
"""
    seen = tmp_path / "started"
    code = counting.replace("sys.argv[1 + 2]", repr(str(seen)))
    with worker(tmp_path, code) as one:
        by_hand(one, f"/labels?worker={one.pid}")  # what the first answer starts
        before = seen.read_text().splitlines()
        by_hand(one, f"/pprof/symbol?worker={one.pid}")
        after = seen.read_text().splitlines()[len(before) :]

    assert [name for name in after if "Pool" in name] == []
    assert len([name for name in after if "_accept" in name]) == 1


def test_nothing_of_a_worker_is_left(tmp_path: Path) -> None:
    """After hundreds of answers it has the files and threads it began with."""

    def counted(one: Worker) -> tuple[int, int]:
        proc = Path(f"/proc/{one.pid}")
        return len(list((proc / "fd").iterdir())), len(list((proc / "task").iterdir()))

    with workers(tmp_path, "", "") as (one, two):
        one.ask("/stacks")
        time.sleep(1.5)
        before = counted(one), counted(two)
        for _ in range(100):
            one.ask("/labels", "metrics")
        time.sleep(1.5)
        after = counted(one), counted(two)

    assert after == before
