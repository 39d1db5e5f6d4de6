"""Evidence on real servers: what a rule met is kept, once, and given out by everybody."""

import asyncio
import contextlib
import os
import re
import signal
import time
from typing import Any

import httpx
import pytest
from perfetto_sql import Processor, missing, processing
from servers import GUNICORN, UVICORN, serving, token

from stroboscope.tracing.latencies import KNOWN_AFTER
from stroboscope.tracing.triggers import LOOK_EVERY_S

ASGI, WSGI = "evident_site:app", "evident_site:flask_app"
RULES = "latency=0.2 window=60"


def listed(base: str, *, count: int = 1, seconds: float = 8) -> list[dict[str, Any]]:
    """The evidence the service lists, once there are so many pieces."""
    headers = {"Authorization": f"Bearer {token('profile', 'trace')}"}
    ends_s = time.monotonic() + seconds
    while True:
        answer = httpx.get(base + "/debug/captures", headers=headers, timeout=10)
        assert answer.status_code == 200
        found = [one for one in answer.json() if one["kind"] == "evidence"]
        if len(found) >= count or time.monotonic() > ends_s:
            return found
        time.sleep(0.1)


def ids(base: str) -> set[str]:
    return {one["id"] for one in listed(base, seconds=1)}


def trace(base: str, one: dict[str, Any], form: str = "perfetto") -> httpx.Response:
    headers = {"Authorization": f"Bearer {token('profile', 'trace')}"}
    return httpx.get(f"{base}{one['url']}?format={form}", headers=headers, timeout=20)


@pytest.fixture(scope="module")
def processor() -> Any:
    if lacks := missing():
        pytest.skip(f"Perfetto's trace processor needs {lacks}")
    with processing() as made:
        yield made


@pytest.mark.parametrize(
    ("command", "app", "regions"),
    [
        (UVICORN, ASGI, {"db.fetch", "render"}),
        (GUNICORN + "--threads 4 ", WSGI, {"db.fetch"}),
        (GUNICORN + "-k gevent ", WSGI, {"db.fetch"}),
    ],
    ids=["uvicorn", "gunicorn", "gevent"],
)
def test_a_slow_request_among_fast_ones_leaves_one_piece(
    command: str, app: str, regions: set[str], processor: Processor
) -> None:
    """Its trace holds that request with its regions, as Perfetto's own SQL sees them."""
    with serving(command, app, STROBOSCOPE_EVIDENCE=RULES) as (base, _):
        for number in range(30):
            httpx.get(f"{base}/fast/{number}")
            if number in (10, 20):
                assert httpx.get(f"{base}/slow/{number}").status_code == 200
        (one,) = listed(base)
        time.sleep(0.3)
        assert [again["id"] for again in listed(base)] == [one["id"]]
        answer = trace(base, one)
        chrome = trace(base, one, "json")

    assert one["parameters"]["rule"] == "latency"
    assert one["reason"].startswith("latency: /slow/")
    assert one["parameters"]["method"] == "GET"
    assert answer.status_code == chrome.status_code == 200
    assert chrome.json()["traceEvents"]
    processor.load(answer.content)
    assert processor.problems() == []
    slow = processor.query(
        "select distinct ts, dur from slice where name like 'http:/slow/%'"
    )
    assert len(slow) == 1, "the second one came later than the copy was taken"
    assert slow[0]["dur"] >= 0.4e9
    inside = processor.query(
        "select distinct c.name as name from slice c join slice p on c.parent_id = p.id "
        "where p.name like 'http:/slow/%'"
    )
    assert {row["name"] for row in inside} == regions


def provoke(base: str, path: str) -> None:
    for number in range(5):
        httpx.get(f"{base}/fast/{number}")
    httpx.get(base + path, timeout=10)


@pytest.mark.parametrize(
    ("rules", "path", "rule", "region"),
    [
        ("errors", "/broken", "error", "db.broken"),
        ("stall=0.3", "/blocking", "stall", "mistake"),
        ("tasks=500", "/hold/600", "tasks", ""),
        ("rss=1048576", "/fast/1", "rss", ""),
    ],
    ids=["errors", "stall", "tasks", "rss"],
)
def test_each_rule_leaves_its_piece(
    rules: str, path: str, rule: str, region: str, processor: Processor
) -> None:
    """One, and nothing for what met none; the region that caused it is in the trace."""
    with serving(UVICORN, ASGI, STROBOSCOPE_EVIDENCE=rules) as (base, _):
        provoke(base, path)
        provoke(base, path)
        (one,) = listed(base)
        answer = trace(base, one)

    assert one["parameters"]["rule"] == rule
    processor.load(answer.content)
    names = {row["name"] for row in processor.query("select name from slice")}
    assert {region} - {""} <= names
    facts = processor.query(
        "select string_value as said from args where key = 'debug.rule'"
    )
    assert [row["said"] for row in facts] == [rule]


def test_what_is_slow_for_its_endpoint_leaves_its_piece() -> None:
    """As soon as the endpoint is known; nobody has said what slow is."""
    rules = {"STROBOSCOPE_EVIDENCE": "p99=8"}
    with serving(UVICORN, ASGI, **rules) as (base, _), httpx.Client() as client:
        client.get(f"{base}/wait/300")  # of an endpoint that is not known yet
        for _ in range(KNOWN_AFTER + 20):
            client.get(f"{base}/wait/0")
        time.sleep(2 * LOOK_EVERY_S)
        assert listed(base, count=0) == []
        client.get(f"{base}/wait/2000")
        (one,) = listed(base)

    assert one["parameters"]["rule"] == "p99"
    assert one["reason"].startswith("p99: /wait/{ms} it took 2.")


def test_a_hundred_hits_at_once_keep_to_the_budget() -> None:
    """Three endpoints, two workers: two pieces, of two endpoints; all others counted."""
    rules = {"STROBOSCOPE_EVIDENCE": "errors latency=0.2 per_hour=2"}
    paths = ["/broken", "/slow/1", "/wait/300"]
    limits = httpx.Limits(max_connections=100)

    async def run(base: str) -> None:
        async with httpx.AsyncClient(base_url=base, limits=limits, timeout=20) as ask:
            await asyncio.gather(*(ask.get(paths[n % 3]) for n in range(100)))

    with serving(UVICORN + "--workers 2", ASGI, **rules) as (base, _):
        asyncio.run(run(base))
        found = listed(base, count=2)
        kept, dropped = 0.0, 0.0
        for _ in range(50):  # each worker has its own thread at it
            kept, dropped = counted(base, "kept"), counted(base, "dropped")
            if kept + dropped == 100:
                break
            time.sleep(0.1)
        again = listed(base, count=2)

    assert {one["id"] for one in again} == {one["id"] for one in found}
    assert len({one["parameters"]["endpoint"] for one in found}) == len(found) == 2
    assert (kept, dropped) == (2, 98)


def counted(base: str, what: str) -> float:
    """Of all workers, for whatever reason."""
    headers = {"Authorization": f"Bearer {token('metrics')}"}
    text = httpx.get(base + "/debug/metrics", headers=headers, timeout=10).text
    lines = re.findall(rf"(?m)^stroboscope_evidence_{what}_total\S* (\S+)$", text)
    return sum(map(float, lines))


def test_workers_give_out_each_others_evidence_and_that_of_the_dead() -> None:
    """Whichever is asked lists each piece once and has it; so when its worker is gone."""
    rules = {"STROBOSCOPE_EVIDENCE": "latency=0.2 window=1"}
    with serving(GUNICORN + "--workers 2 ", WSGI, **rules) as (base, _):
        httpx.get(base + "/slow/1")
        (one,) = listed(base)
        owner = one["parameters"]["pid"]
        for _ in range(12):
            assert [again["id"] for again in listed(base)] == [one["id"]]
            assert trace(base, one).status_code == 200
        os.kill(int(owner), signal.SIGKILL)
        for _ in range(100):
            with contextlib.suppress(httpx.HTTPError):
                if one["id"] in ids(base):
                    break
            time.sleep(0.1)
        assert [again["id"] for again in listed(base)] == [one["id"]]
        assert trace(base, one).status_code == 200
        headers = {"Authorization": f"Bearer {token('admin')}"}
        gone = httpx.delete(base + one["url"], headers=headers, timeout=10)
        assert gone.status_code == 200
        assert listed(base, seconds=0.5) == []
