"""Two hosts of one service and a real Redis; a host is a run directory of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis_servers import RedisServer, redis_server
from workers import KEY, ROOT, Worker, wait_until, worker

from stroboscope.auth.keys import generate_key
from stroboscope.endpoints.agreement import FLEET, HOST
from stroboscope.endpoints.leases import GRACE_S
from stroboscope.errors import FleetError
from stroboscope.fleet.clerk import BUDGET_S, RETRY_S, SLACK_S
from stroboscope.fleet.link import Link
from stroboscope.fleet.seal import Seal

pytestmark = pytest.mark.slow

#: What a machine full of tests adds to a budget.
NOISE_S = 1.0
#: Until a change on one host is seen on another, asked or not.
ADOPTED_S = 2.0
#: Until a Redis that is back has been noticed.
FOUND_S = RETRY_S * 1.3 + 1.5
SAID = "X-Stroboscope-Fleet"
OLD = generate_key()
STATE = "stroboscope:{shop/}:state"
LEASE = "stroboscope:{shop/}:lease"


@contextmanager
def hosts(
    tmp_path: Path, server: RedisServer, *names: str, **options: object
) -> Iterator[list[Worker]]:
    """One worker on each."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                worker(tmp_path / name, redis_url=server.url, **options)
            )
            for name in names
        ]


def put(host: Worker, value: int, ttl: str = "60s", **headers: str) -> httpx.Response:
    return host.ask(
        "/settings",
        "admin",
        method="PUT",
        json={"cpu_hz": value, "ttl": ttl},
        headers=headers,
    )


def settings(host: Worker) -> dict[str, Any]:
    found: dict[str, Any] = host.ask("/settings", "metrics").json()
    return found


def rate(host: Worker) -> int:
    value: int = settings(host)["settings"]["cpu_hz"]["value"]
    return value


def write_knobs(
    server: RedisServer, mark: str, version: int, rate: int, *keys: str
) -> None:
    """As another host does whose keys these are."""
    document = json.dumps({"version": version, "overrides": {"cpu_hz": [rate, None]}})
    seal = Seal(keys or (KEY,), "shop/").sign("settings document", mark, document)
    server.run("HSET", STATE, "mark", mark, "knobs", document, "seal", seal)


def fleet(host: Worker) -> str:
    said: str = host.ask("/selfcheck", "metrics").json()["fleet"]
    return said


def wait_for_fleet(*asked: Worker, seconds: float = FOUND_S) -> None:
    wait_until(lambda: all(fleet(one) == "reachable" for one in asked), seconds)


def in_background(host: Worker, path: str, *scopes: str) -> tuple[Any, list[Any]]:
    """A thread that asks, and its answer when it is done."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(host.ask(path, *scopes, timeout=60))
        except httpx.HTTPError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def test_h33_a_put_on_one_host_holds_on_all_until_its_time_is_over(
    tmp_path: Path, server: RedisServer
) -> None:
    """Adopted within two seconds, asked or not; over on all within a moment."""
    with hosts(tmp_path, server, "a", "b") as (a, b):
        began = time.monotonic()
        done = put(a, 50, "5s")
        took = wait_until(lambda: rate(b) == 50, ADOPTED_S)
        left = settings(b)["settings"]["cpu_hz"]["expires_in"]
        elapsed = time.monotonic() - began
        versions = settings(a)["version"], settings(b)["version"]
        with worker(tmp_path / "c", redis_url=server.url) as late:
            wait_until(lambda: rate(late) == 50, ADOPTED_S)
            late_left = settings(late)["settings"]["cpu_hz"]["expires_in"]
            late_elapsed = time.monotonic() - began
            wait_until(lambda: rate(a) == 100, 5)
            ended = [time.monotonic() - began]
            for one in (b, late):
                wait_until(lambda one=one: rate(one) == 100, 1.0)
                ended.append(time.monotonic() - began)

    assert done.json()["holds_for"] == FLEET
    assert done.headers[SAID] == "reachable"
    assert took < ADOPTED_S
    assert abs(left - (5 - elapsed)) < 0.3
    assert abs(late_left - (5 - late_elapsed)) < 0.3
    assert versions == (2, 2)
    assert all(4.7 < moment < 6.5 for moment in ended)


def test_if_match_holds_across_hosts(tmp_path: Path, server: RedisServer) -> None:
    """A version seen on one host counts on the other, at once and without a look."""
    with hosts(tmp_path, server, "a", "b") as (a, b):
        first = put(a, 50)
        stale = put(b, 60, **{"If-Match": '"1"'})
        fresh = put(b, 70, **{"If-Match": first.headers["ETag"]})
        again = put(a, 80, **{"If-Match": first.headers["ETag"]})
        wait_until(lambda: rate(a) == rate(b) == 70, ADOPTED_S)

    assert [one.status_code for one in (stale, fresh, again)] == [409, 200, 409]
    assert fresh.headers["ETag"] == '"3"'


def test_of_many_who_change_at_once_each_is_one_version(
    tmp_path: Path, server: RedisServer
) -> None:
    """Who is refused has changed nothing, and all hosts end with the same."""
    with hosts(tmp_path, server, "a", "b") as (a, b):
        answers: list[httpx.Response] = []

        def change(host: Worker, value: int) -> None:
            answers.append(put(host, value))

        threads = [
            threading.Thread(target=change, args=(host, 10 * number + index))
            for number in range(1, 6)
            for index, host in enumerate((a, b))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        good = [one for one in answers if one.status_code == 200]
        wait_until(lambda: settings(a)["version"] == settings(b)["version"], ADOPTED_S)
        wait_until(lambda: rate(a) == rate(b), ADOPTED_S)
        version = settings(a)["version"]

    assert {one.status_code for one in answers} <= {200, 409}
    assert len(good) >= 2
    assert version == 1 + len(good)


def test_h09_a_revocation_holds_on_all_hosts(
    tmp_path: Path, server: RedisServer
) -> None:
    """Also on one that comes later, and after Redis has lost what it had."""
    with hosts(tmp_path, server, "a", "b") as (a, b):

        def revoked(host: Worker) -> int:
            done = host.ask("/revoke", "admin", method="POST", json={"id": "other"})
            count: int = done.json()["revoked"]
            return count

        done = a.ask("/revoke", "admin", method="POST", json={"id": "lost-token"})
        wait_until(lambda: "lost-token" in (b.folder / "revoked").read_text(), 2.0)
        server.run("FLUSHALL")
        wait_until(lambda: server.run("EXISTS", STATE) == 1, ADOPTED_S)
        with worker(tmp_path / "c", redis_url=server.url) as late:
            wait_until(lambda: (late.folder / "revoked").exists(), ADOPTED_S)
            text = (late.folder / "revoked").read_text()
            assert revoked(late) == 2

    assert done.json()["holds_for"] == FLEET
    assert "lost-token" in text


def test_h19_one_trace_over_the_fleet(tmp_path: Path, server: RedisServer) -> None:
    """A second is told when to come back, whichever host it asks; then it is free."""
    with hosts(tmp_path, server, "a", "b") as (a, b):
        thread, found = in_background(a, "/trace?seconds=2", "trace")
        wait_until(lambda: server.run("EXISTS", LEASE) == 1, 2.0)
        refused = [one.ask("/trace?seconds=1", "trace") for one in (a, b)]
        forensic = b.ask("/pprof/profile?seconds=1&forensic=1")
        thread.join()
        after = b.ask("/trace?seconds=0.1", "trace")
        last = b.ask("/pprof/profile?seconds=0.1&forensic=1")

    assert [one.status_code for one in (*refused, forensic)] == [429] * 3
    assert {one.text for one in refused} == {"a trace is being taken\n"}
    assert all(1 <= int(one.headers["Retry-After"]) <= 2 for one in refused)
    assert found[0].headers[SAID] == "held; fence=1"
    assert after.headers[SAID] == "held; fence=2"
    assert last.headers[SAID] == "held; fence=3"


def test_h19_of_ten_traces_at_once_one_is_taken(
    tmp_path: Path, server: RedisServer
) -> None:
    """Over two hosts."""
    with hosts(tmp_path, server, "a", "b") as pair:
        asked = [
            in_background(pair[n % 2], "/trace?seconds=1.5", "trace") for n in range(10)
        ]
        for thread, _ in asked:
            thread.join()
        statuses = sorted(found[0].status_code for _, found in asked)

    assert statuses == [200] + [429] * 9


def test_h20_a_killed_holders_lease_is_free_at_once_on_its_host(
    tmp_path: Path, server: RedisServer
) -> None:
    """Its host knows that it is dead; the others wait until the lease ends by itself."""
    with hosts(tmp_path, server, "a", "a", "b") as (lost, beside, other):
        thread, _ = in_background(lost, "/trace?seconds=3", "trace")
        wait_until(lambda: server.run("EXISTS", LEASE) == 1, 2.0)
        os.kill(lost.pid, signal.SIGKILL)
        thread.join()
        elsewhere = other.ask("/trace?seconds=0.1", "trace")
        here = beside.ask("/trace?seconds=0.1", "trace")
        then = other.ask("/trace?seconds=0.1", "trace")

    assert elsewhere.status_code == 429
    assert here.headers[SAID] == "held; fence=2"
    assert then.status_code == 200


@pytest.mark.slow
def test_h19_a_holder_that_stood_still_past_its_end_is_refused(
    tmp_path: Path, server: RedisServer
) -> None:
    """Another has had the lease by then: it stops at once, and gives nothing out."""
    with hosts(tmp_path, server, "a", "b") as (a, b):
        path = "/pprof/profile?seconds=1&forensic=1"
        thread, found = in_background(a, path)
        wait_until(lambda: server.run("EXISTS", LEASE) == 1, 2.0)
        os.kill(a.pid, signal.SIGSTOP)
        began = time.monotonic()
        early = b.ask("/trace?seconds=3", "trace")
        wait_until(lambda: server.run("EXISTS", LEASE) == 0, 1 + GRACE_S + 2)
        freed = time.monotonic() - began
        other, others = in_background(b, "/trace?seconds=3", "trace")
        wait_until(lambda: server.run("EXISTS", LEASE) == 1, 2.0)
        os.kill(a.pid, signal.SIGCONT)
        woken = time.monotonic()
        thread.join()
        stopped = time.monotonic() - woken
        other.join()
        lost = "stroboscope_fleet_leases_lost_total 1"
        is_counted = lost in a.ask("/metrics", "metrics").text
        kept = a.ask("/captures", "profile").json()

    assert early.status_code == 429
    assert freed < 1 + GRACE_S + 1
    assert stopped < 1.5
    assert found[0].status_code == 503
    assert found[0].headers[SAID] == "lost; fence=1"
    assert found[0].headers["Retry-After"] == "1"
    assert others[0].headers[SAID] == "held; fence=2"
    assert is_counted
    assert kept == []


def test_a_lease_that_nobody_else_has_had_is_said_to_have_ended(
    tmp_path: Path, server: RedisServer
) -> None:
    """Redis has lost what it had in the middle: the capture is whole, and marked."""
    with hosts(tmp_path, server, "a") as (a,):
        thread, found = in_background(a, "/trace?seconds=1", "trace")
        wait_until(lambda: server.run("EXISTS", LEASE) == 1, 2.0)
        server.run("FLUSHALL")
        thread.join()

    assert found[0].status_code == 200
    assert found[0].headers[SAID] == "expired; fence=1"


def test_a_lease_whose_end_redis_did_not_hear_is_freed_later(
    tmp_path: Path, server: RedisServer
) -> None:
    """Redis was gone when the capture was done: the capture is whole, and marked."""
    with hosts(tmp_path, server, "a") as (a,):
        thread, found = in_background(a, "/trace?seconds=1", "trace")
        wait_until(lambda: server.run("EXISTS", LEASE) == 1, 2.0)
        server.pause()
        thread.join()
        server.go_on()
        left_ms = server.run("PTTL", LEASE)
        took = wait_until(lambda: server.run("EXISTS", LEASE) == 0, FOUND_S)

    assert (found[0].status_code, found[0].headers[SAID]) == (200, "unreachable")
    assert took < left_ms / 1000 - 0.2 or left_ms < 0


def test_a_lease_without_an_end_is_nobodys(tmp_path: Path, server: RedisServer) -> None:
    """Nor one that none of ours has signed; any other one is over when it says."""
    with hosts(tmp_path, server, "a") as (a,):
        server.run("SET", LEASE, "9|ab|cd|trace")
        free = a.ask("/trace?seconds=0.1", "trace")
        nobody = Seal((generate_key(),), "shop/").sign("lease", "ab", "cd", "trace")
        texts = ("<script>\r\nX: y", "9|ab|cd|trace|", f"9|ab|cd|trace|{nobody}")
        forged = []
        for text in texts:
            server.run("SET", LEASE, text, "PX", "60000")
            forged.append(a.ask("/trace?seconds=0.1", "trace"))
        ours = Seal((KEY,), "shop/").sign("lease", "ab", "cd", "capture")
        server.run("SET", LEASE, f"9|ab|cd|capture|{ours}", "PX", "60000")
        held = a.ask("/trace?seconds=0.1", "trace")
        said = fleet(a)

    assert free.status_code == 200
    assert [one.status_code for one in forged] == [200] * len(texts)
    assert said == "reachable; ignored, not signed with our keys: 3"
    assert held.status_code == 429
    assert held.text == "a capture is being taken\n"
    assert int(held.headers["Retry-After"]) == 60 - GRACE_S


@pytest.mark.parametrize("loses_data", [False, True])
def test_a_redis_that_is_gone_leaves_each_host_to_itself(
    tmp_path: Path, server: RedisServer, loses_data: bool
) -> None:
    """The last known holds, leases are the host's, and every answer says so, in time;
    when Redis is back, with what it had or without, all hosts agree again."""
    with hosts(tmp_path, server, "a", "a", "b") as (a, beside, b):
        put(a, 50)
        wait_until(lambda: rate(b) == 50, ADOPTED_S)
        server.kill(loses_data=loses_data)
        began = time.monotonic()
        changed = put(b, 60)
        took = time.monotonic() - began
        traced = a.ask("/trace?seconds=0.1", "trace")
        thread, _ = in_background(a, "/trace?seconds=1", "trace")
        wait_until(lambda: (a.folder / "lease").exists(), 2.0)
        time.sleep(0.3)
        refused = beside.ask("/trace", "trace")
        elsewhere = b.ask("/trace?seconds=0.1", "trace")
        thread.join()
        wait_until(lambda: all("unreachable" in fleet(x) for x in (a, beside, b)), 4)
        shown = a.ask("/metrics", "metrics").text
        during = rate(a), rate(beside), rate(b)
        server.start()
        wait_for_fleet(a, beside, b)
        wait_until(lambda: {rate(a), rate(beside), rate(b)} == {60}, ADOPTED_S)
        with worker(tmp_path / "c", redis_url=server.url) as late:
            wait_until(lambda: rate(late) == 60, ADOPTED_S)
        after = put(a, 70)

    assert took < 2 * (BUDGET_S + SLACK_S) + NOISE_S
    assert changed.status_code == 200
    assert changed.json()["holds_for"] == HOST
    assert changed.headers[SAID] == "unreachable"
    assert (traced.status_code, traced.headers[SAID]) == (200, "unreachable")
    assert refused.status_code == 429
    assert elsewhere.status_code == 200
    assert f'stroboscope_fleet_reachable{{pid="{a.pid}"}} 0' in shown
    assert during == (50, 50, 60)
    assert after.json()["holds_for"] == FLEET


def test_what_was_switched_while_it_was_gone_ends_by_its_host(
    tmp_path: Path, server: RedisServer
) -> None:
    """Nobody needs Redis for that."""
    with hosts(tmp_path, server, "a", "b") as (a, b):
        put(a, 50, "3s")
        wait_until(lambda: rate(b) == 50, ADOPTED_S)
        server.kill()
        wait_until(lambda: rate(a) == rate(b) == 100, 4.0)


def test_a_redis_that_is_not_there_at_the_start_is_found_later(
    tmp_path: Path, server: RedisServer
) -> None:
    """Workers start without it, and take part when it comes."""
    server.kill()
    began = time.monotonic()
    with hosts(tmp_path, server, "a", "b") as (a, b):
        started = time.monotonic() - began
        alone = put(a, 50)
        server.start()
        wait_for_fleet(a, b)
        wait_until(lambda: rate(b) == 50, ADOPTED_S)

    assert started < 15
    assert alone.json()["holds_for"] == HOST


def test_a_slow_redis_holds_up_one_answer_for_a_budget(
    tmp_path: Path, server: RedisServer
) -> None:
    """It takes connections and says nothing; the next ones do not wait at all."""
    with hosts(tmp_path, server, "a") as (a,):
        wait_for_fleet(a)
        server.pause()
        took = []
        for _ in range(4):
            began = time.monotonic()
            answer = a.ask("/trace?seconds=0.1", "trace")
            took.append(time.monotonic() - began)
            assert (answer.status_code, answer.headers[SAID]) == (200, "unreachable")
        began = time.monotonic()
        stacks = a.ask("/stacks")
        stacks_took = time.monotonic() - began
        server.go_on()
        wait_for_fleet(a)
        # What it was asked to hold while it stood still is nobody's any more.
        wait_until(lambda: server.run("EXISTS", LEASE) == 0, 1.0)
        after = a.ask("/trace?seconds=0.1", "trace")

    assert after.headers[SAID].startswith("held")
    assert took[0] < 0.1 + 2 * (BUDGET_S + SLACK_S) + NOISE_S
    assert min(took) < 0.1 + BUDGET_S
    assert stacks.status_code == 200
    assert stacks_took < BUDGET_S + NOISE_S


@pytest.mark.parametrize(
    "knobs",
    ["{", "[]", '{"version": 9}', '{"version": 1e99, "overrides": {}}',
     '{"version": 9, "overrides": {"cpu_hz": ["<b>", null], "none": [1, NaN]}}',
     '{"version": 9, "overrides": {"cpu_hz": [1000000, null], "other": [1, null]}}',
     "[" * 60_000, "x" * 70_000],
    ids=range(8),
)  # fmt: skip
def test_garbage_in_redis_switches_nothing(
    tmp_path: Path, server: RedisServer, knobs: str
) -> None:
    """Nothing fails for it, and the next change replaces it."""
    with hosts(tmp_path, server, "a") as (a,):
        server.run("HSET", STATE, "mark", "9.ab", "knobs", knobs)
        time.sleep(1.5)
        before = rate(a), fleet(a)
        done = put(a, 50)

    assert before == (100, "reachable; ignored, not signed with our keys: 1")
    assert done.json()["holds_for"] == FLEET


def test_who_can_write_to_redis_switches_nothing(
    tmp_path: Path, server: RedisServer
) -> None:
    """What nobody who holds our keys has signed is ignored, counted and said, and a
    change replaces it; so are a signature of elsewhere and one moved to another mark."""
    with hosts(tmp_path, server, "a", keys=(OLD, KEY)) as (a,):
        write_knobs(server, "7.ab", 7, 70, OLD)  # keys are being rotated
        wait_until(lambda: rate(a) == 70, 4.0)
        genuine = server.run("HGET", STATE, "seal")
        forgeries = {
            "8.ab": lambda: server.run("HDEL", STATE, "seal"),
            "9.ab": lambda: server.run("HSET", STATE, "seal", genuine),
            "10.ab": lambda: write_knobs(server, "10.ab", 10, 50, generate_key()),
            "x" * 100 + "\xff": lambda: None,
        }
        for mark, forge in forgeries.items():
            document = '{"version": 99, "overrides": {"cpu_hz": [50, null]}}'
            server.run("HSET", STATE, "mark", mark, "knobs", document)
            forge()
        time.sleep(1.5)
        ignored = rate(a), fleet(a).partition(":")[0]
        counted = a.ask("/metrics", "metrics").text
        done = put(a, 60)
        sealed = server.run("HMGET", STATE, "mark", "knobs", "seal")

    assert ignored == (70, "reachable; ignored, not signed with our keys")
    assert re.search(r"stroboscope_fleet_refused_total [1-9]", counted)
    assert done.json()["holds_for"] == FLEET
    assert json.loads(sealed[1])["overrides"]["cpu_hz"][0] == 60
    for key in (OLD, KEY):
        assert Seal((key,), "shop/").holds(sealed[2], "settings document", *sealed[:2])


def test_h09_who_can_write_to_redis_revokes_nothing(
    tmp_path: Path, server: RedisServer
) -> None:
    """And keeps nobody from revoking."""
    with hosts(tmp_path, server, "a", "b") as (a, b):
        wait_for_fleet(a, b)
        server.run("HSET", STATE, "not_before", "99999999999", "revoked", "forged")
        server.run("SADD", STATE.replace("state", "revoked"), "an-id", "another|x:y")
        time.sleep(1.5)
        good = [one.ask("/labels", "metrics").status_code for one in (a, b)]
        body = {"json": {"id": "the-id"}}
        done = a.ask("/revoke", "admin", method="POST", **body)

    assert good == [200, 200]
    assert done.json()["holds_for"] == FLEET
    assert done.json()["revoked"] == 1
    assert done.json()["not_before"] == 0.0


def test_redis_is_asked_about_once_a_second_by_a_host(
    tmp_path: Path, server: RedisServer
) -> None:
    """However many workers it has; and another takes the turn of one that is gone."""
    with hosts(tmp_path, server, *"aaaa") as workers:
        wait_for_fleet(*workers)
        time.sleep(1.0)

        def looks() -> int:
            stats = server.run("INFO", "commandstats")
            return int(stats["cmdstat_hmget"]["calls"])

        before = looks()
        time.sleep(6.0)
        a_second = (looks() - before) / 6.0
        looker = next(
            one
            for one in workers
            if f'"process": {one.pid}' in (one.folder / "fleet").read_text()
        )
        os.kill(looker.pid, signal.SIGSTOP)
        try:
            other = next(one for one in workers if one is not looker)
            write_knobs(server, "8.ab", 8, 33)
            took = wait_until(
                lambda: (
                    other.ask(f"/settings?worker={other.pid}", "metrics").json()[
                        "version"
                    ]
                    == 8
                ),
                4.0,
            )
        finally:
            os.kill(looker.pid, signal.SIGCONT)

    assert 0.5 < a_second < 1.6
    assert took < ADOPTED_S + 1.2


def test_two_services_and_two_envs_share_a_redis(
    tmp_path: Path, server: RedisServer
) -> None:
    """And nothing else."""
    with (
        worker(tmp_path / "a", redis_url=server.url) as one,
        worker(tmp_path / "b", redis_url=server.url, service="mail") as two,
        worker(tmp_path / "c", redis_url=server.url, env="") as same,
    ):
        put(one, 50)
        put(two, 60)
        wait_until(lambda: rate(same) == 50, ADOPTED_S)
        keys = set(server.run("KEYS", "*"))
        rates = rate(one), rate(two)

    assert rates == (50, 60)
    assert keys == {
        f"stroboscope:{{{name}/}}:state" for name in ("shop", "mail")
    }  # no tokens, no revocations: nothing was revoked


def test_a_worker_without_a_run_directory_is_a_host_of_its_own(
    tmp_path: Path, server: RedisServer
) -> None:
    """It looks for itself, and its changes are the fleet's as well."""
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT / "tests/helpers")!r})
import asking
from dataclasses import replace
from stroboscope.endpoints import Surface
settings = replace(asking.SETTINGS, keys=({KEY!r},), rundir="off")
surface = Surface(replace(settings, redis_url={server.url!r}))
surface.wake()
print(surface.desk.agreement.change({{"cpu_hz": 50}}, 60.0, None), flush=True)
while surface.desk.knobs.get("cpu_hz") != 60:
    time.sleep(0.02)
print("adopted", flush=True)
"""
    with worker(tmp_path / "a", redis_url=server.url) as a:
        done = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert done.stdout is not None
        said = done.stdout.readline().strip()
        wait_until(lambda: rate(a) == 50, ADOPTED_S)
        put(a, 60)
        rest, _ = done.communicate(timeout=10)

    assert said == FLEET
    assert rest == "adopted\n"


@pytest.mark.parametrize("secret", ["hunter2hunter2"])
def test_h29_the_password_of_redis_is_shown_nowhere(
    tmp_path: Path, secret: str
) -> None:
    """Neither while Redis is there nor when it is gone; and Redis holds no token."""
    with (
        redis_server(tmp_path / "redis", requirepass=secret) as server,
        hosts(tmp_path, server, "a") as (a,),
    ):
        paths = ["/", "/selfcheck", "/settings", "/metrics", "/workers", "/stacks"]
        seen = [a.ask(path, "admin").content for path in paths]
        put(a, 50)
        server.kill()
        put(a, 60)
        seen += [a.ask(path, "admin").content for path in paths]
        files = [one.read_bytes() for one in a.folder.iterdir() if one.is_file()]

    assert not any(secret.encode() in one for one in seen + files)
    written = (tmp_path / "redis/appendonlydir").glob("*")
    stored = b"".join(one.read_bytes() for one in written)
    assert b"cpu_hz" in stored
    assert a.key.encode() not in stored


def test_the_acl_of_the_how_to_is_enough(tmp_path: Path, server: RedisServer) -> None:
    """The user it makes can do all that we ask of Redis, and touch nothing else."""
    text = (ROOT / "docs/fleet.md").read_text()
    (line,) = re.findall(r"^ACL SETUSER .*$", text, re.MULTILINE)
    server.run(
        *line.replace("{shop/prod}", "{shop/}").replace(">password", ">sesame").split()
    )
    server.run("SET", "another's", "1")
    url = server.url.replace("redis://", "redis://stroboscope:sesame@")
    with worker(tmp_path / "a", redis_url=url) as a:
        put_for = put(a, 50).json()["holds_for"]
        revoked = a.ask("/revoke", "admin", method="POST", json={"id": "x"}).json()
        traced = a.ask("/trace?seconds=0.1", "trace")
        again = a.ask("/trace?seconds=0.1", "trace")
        said = fleet(a)

    assert put_for == revoked["holds_for"] == FLEET
    assert traced.headers[SAID] == "held; fence=1"
    assert again.headers[SAID] == "held; fence=2"
    assert said == "reachable"
    link = Link(url)
    with pytest.raises(FleetError):
        link.call(("GET", "another's"), time.monotonic() + 1)
    link.close()
