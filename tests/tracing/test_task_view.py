"""The task view: types, the living, and one request's timeline by any of its ids."""

import asyncio
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from asking import BASE, SETTINGS, Ask, ask_asgi, ask_wsgi, bearer, token
from fastapi import FastAPI
from perfetto_sql import Processor
from workers import Worker, workers

import stroboscope as strobe
from stroboscope.formats.timeline import Timeline
from stroboscope.integrations import fastapi as our_fastapi
from stroboscope.rules import Rules
from stroboscope.tracing import Recorder, recorder
from stroboscope.tracing.kept import CAP, KEPT, Wanted
from stroboscope.tracing.triggers import TRIGGERS

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
TEMPLATE = "https://jaeger.example/trace/{trace_id}?span={span_id}"
LINK = f"https://jaeger.example/trace/{TRACE}?span={SPAN}"
PAGE = {"Accept": "text/html"}


@pytest.fixture
def burnt_s() -> list[float]:
    """CPU time of each request to `/burn`, by its thread's own clock."""
    return []


@pytest.fixture
def app(flight: Recorder, burnt_s: list[float]) -> FastAPI:
    made = FastAPI()
    our_fastapi.install(made, replace(SETTINGS, trace_url=TEMPLATE))

    @made.get("/item/{item}")
    async def item(item: int) -> dict[str, int]:
        with strobe.region("db.fetch"):
            await asyncio.sleep(0.002)
        strobe.log("cache", "miss <%s>", "b")
        if item == 0:
            raise ZeroDivisionError
        return {"item": item}

    @made.get("/stuck")
    async def stuck() -> None:
        with strobe.region("<llm>.call"):
            await asyncio.sleep(30)

    @made.get("/burn")
    def burn() -> int:
        began_s = time.thread_time()
        total = sum(range(3_000_000))
        burnt_s.append(time.thread_time() - began_s)
        return total

    return made


def asked(app: FastAPI, *paths: str, **headers: str) -> list[httpx.Response]:
    """The answers, one after the other, while a request is stuck."""

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport,
            base_url=BASE,
            headers=bearer(token("trace")) | headers,
        ) as client:
            stuck = asyncio.create_task(client.get("/stuck"))
            await asyncio.sleep(0.01)
            found = [
                await client.get(
                    path, headers=PARENT if path.startswith("/item") else None
                )
                for path in paths
            ]
            stuck.cancel()
            return found

    return asyncio.run(run())


def types(answer: httpx.Response) -> dict[str, Any]:
    return {f"{one['method']} {one['name']}": one for one in answer.json()["types"]}


def test_each_type_says_where_its_time_went(app: FastAPI) -> None:
    """Count, errors, latency, shares of regions and of none; the slowest with links."""
    *_, answer = asked(app, "/item/1", "/item/2", "/item/0", "/debug/tasks")

    found = types(answer)["GET http:/item/{item}"]
    assert (found["ended"], found["errors"]) == (3, 1)
    assert sum(found["latency"]["counts"]) == 3
    assert found["latency"]["p50_ms"] >= 2
    (region,) = found["regions"]
    assert (region["name"], region["count"]) == ("db.fetch", 3)
    assert region["share"] + found["unaccounted"] == pytest.approx(1, abs=0.001)
    assert {one["trace_url"] for one in found["slowest"]} == {LINK}
    assert found["cpu_s"] is None  # nobody knows, and nobody guesses
    assert "not known" in answer.json()["cpu"]


def test_the_living_are_listed_with_region_and_stack(app: FastAPI) -> None:
    """Their age, the region they are in and where they wait."""
    (answer,) = asked(app, "/debug/tasks")

    (one,) = answer.json()["live"]
    assert one["name"] == "http:/stuck"
    assert one["region"] == "<llm>.call"
    assert one["age_s"] >= one["region_age_s"] > 0
    (stack,) = one["stacks"]
    assert stack[0].startswith("sleep ")
    assert any(" " + __file__ + ":" in place for place in stack)


def test_cpu_and_waiting_are_told_apart_when_cpu_is_sampled(
    app: FastAPI, burnt_s: list[float]
) -> None:
    """With `seconds`: what burns has CPU, what sleeps waits, within the error it says."""

    async def run() -> tuple[httpx.Response, float]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url=BASE, headers=bearer(token("trace"))
        ) as client:
            stuck = asyncio.create_task(client.get("/stuck"))
            loop_s = time.thread_time()
            asking = asyncio.create_task(client.get("/debug/tasks?seconds=0.6"))
            while not asking.done():
                await client.get("/burn")
            loop_s = time.thread_time() - loop_s
            stuck.cancel()
            return await asking, loop_s

    answer, loop_s = asyncio.run(run())

    found = types(answer)
    burnt, stuck = found["GET http:/burn"], found["GET http:/stuck"]
    # Its handlers' own clocks, less those at both edges of the window, which may be
    # outside; and what the loop did for them.
    error_s = 3 * burnt["cpu_error_s"]
    assert sum(burnt_s[1:-1]) - error_s < burnt["cpu_s"]
    assert burnt["cpu_s"] < sum(burnt_s) + loop_s + error_s
    # An estimate may be more than all its time; nothing has waited then.
    rest_s = max(0, burnt["time_s"] - burnt["cpu_s"])
    assert burnt["waiting_s"] == pytest.approx(rest_s, abs=0.001)
    assert stuck["cpu_s"] < 0.02
    # It stood there from the window's begin to its end, and of time outside of the
    # window nothing is charged.
    assert stuck["time_s"] == pytest.approx(
        answer.json()["recorder"]["seconds"], abs=0.001
    )
    assert stuck["waiting_s"] == pytest.approx(stuck["time_s"], abs=0.021)
    assert answer.json()["cpu"] == "sampled for 0.6 s"


@pytest.mark.parametrize("by", ["trace", "span", "number"])
def test_a_request_is_found_by_each_of_its_ids(app: FastAPI, by: str) -> None:
    """Trace id, span id and the task's own: its timeline."""
    *_, listed = asked(app, "/item/7", "/debug/tasks")
    number = types(listed)["GET http:/item/{item}"]["slowest"][0]["id"]
    name = {"trace": TRACE, "span": SPAN, "number": number}[by]

    (answer,) = asked(app, f"/debug/tasks/{name}")

    (task,) = answer.json()["tasks"]
    assert (task["id"], task["name"], task["status"]) == (
        number,
        "http:/item/{item}",
        200,
    )
    assert (task["trace_id"], task["span_id"], task["trace_url"]) == (TRACE, SPAN, LINK)
    (region,) = task["regions"]
    assert region["name"] == "db.fetch"
    assert region["duration_ms"] >= 2
    (moment,) = task["moments"]
    assert (moment["name"], moment["text"]) == ("cache", "miss <b>")
    parts = sum(task["time_ms"].values()) + task["unaccounted_ms"]
    assert parts == pytest.approx(task["duration_ms"], abs=0.01)


def test_perfetto_gets_one_request_and_no_other(
    app: FastAPI, processor: Processor
) -> None:
    """Its regions and its ids, in the real trace processor."""
    *_, answer = asked(app, "/item/7", f"/debug/tasks/{TRACE}?format=perfetto")

    assert "task.pftrace" in answer.headers["content-disposition"]
    processor.load(answer.content)
    rows = processor.query("select name from slice where name != 'about this trace'")
    assert {row["name"] for row in rows} == {"cache", "db.fetch", "http:/item/{item}"}
    links = processor.query(
        "select string_value as link from args where key = 'debug.trace_url'"
    )
    assert links == [{"link": LINK}]


def test_chrome_gets_the_same(app: FastAPI) -> None:
    """In its own form."""
    *_, answer = asked(app, "/item/7", f"/debug/tasks/{TRACE}?format=json")

    names = {event["name"] for event in answer.json()["traceEvents"]}
    assert {"db.fetch", "http:/item/{item}"} <= names
    assert "http:/stuck" not in names
    assert LINK in {
        event["args"].get("trace_url") for event in answer.json()["traceEvents"]
    }


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/debug/tasks/" + "0" * 31 + "1", 404),
        ("/debug/tasks/nothing", 404),
        ("/debug/tasks/0", 404),
        ("/debug/tasks/99999999999999999999999", 404),
        (f"/debug/tasks/{TRACE}?format=xml", 400),
    ],
)
def test_what_is_not_held_is_said(app: FastAPI, path: str, status: int) -> None:
    """Unknown ids and forms."""
    (answer,) = asked(app, path)

    assert answer.status_code == status
    assert answer.headers["x-go-pprof"] == "1"


def test_pages_show_it_and_run_nothing(app: FastAPI) -> None:
    """What users name is text there; the style is the page's one."""
    *_, listed, one = asked(
        app, "/item/7", "/debug/tasks", f"/debug/tasks/{TRACE}", **PAGE
    )

    for page in (listed, one):
        assert page.headers["content-type"].startswith("text/html")
        assert "style-src 'sha256-" in page.headers["content-security-policy"]
        assert not re.search(r"<script| style=| on\w+=", page.text)
    assert "&lt;llm&gt;.call" in listed.text
    assert "<llm>" not in listed.text
    assert "miss &lt;b&gt;" in one.text
    assert f'<a href="{LINK}">' in one.text


def test_tasks_need_the_scope_trace(app: FastAPI) -> None:
    """No other one opens them."""
    found = asked(
        app, "/debug/tasks", f"/debug/tasks/{TRACE}", **bearer(token("profile"))
    )

    assert [one.status_code for one in found] == [403, 403]


def test_a_capture_outlasts_the_recorder(app: FastAPI) -> None:
    """What `/debug/trace` has caught is found by id though the ring is another."""
    KEPT.clear()

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url=BASE, headers=bearer(token("trace"))
        ) as client:
            asking = asyncio.create_task(client.get("/debug/trace?seconds=0.3"))
            await asyncio.sleep(0.1)
            await client.get("/item/7", headers=PARENT)
            assert (await asking).status_code == 200

    asyncio.run(run())
    recorder.close()

    (answer,) = asked(app, f"/debug/tasks/{TRACE}")

    KEPT.clear()
    (task,) = answer.json()["tasks"]
    assert task["labels"]["endpoint"] == "/item/{item}"
    assert task["open"] == ""


@pytest.mark.parametrize("by", ["trace", "span", "number"])
def test_evidence_outlasts_the_recorder(
    flight: Recorder, tmp_path: Path, by: str
) -> None:
    """What a rule has kept is found by each of its ids, and by nobody else's."""
    settings = replace(
        SETTINGS,
        evidence="latency=0.005 window=1",
        evidence_dir=str(tmp_path),
        trace_url=TEMPLATE,
    )
    app = FastAPI()
    our_fastapi.install(app, settings)

    @app.get("/slow")
    async def slow() -> None:
        with strobe.region("db.fetch"):
            await asyncio.sleep(0.01)

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url=BASE, headers=bearer(token("trace"))
        ) as client:
            await client.get("/slow", headers=PARENT)
            kept = tmp_path / SETTINGS.service
            for _ in range(100):
                if [*kept.glob("evidence-*-*")]:
                    break
                await asyncio.sleep(0.05)
            listed = (await client.get("/debug/tasks")).json()
            number = listed["types"][0]["slowest"][0]["id"]
            recorder.close()
            name = {"trace": TRACE, "span": SPAN, "number": number}[by]
            other = "1" * (16 if by == "span" else 32)
            return [
                await client.get(f"/debug/tasks/{one}")
                for one in (name, f"{name}?format=perfetto", other)
            ]

    try:
        found, perfetto, other = asyncio.run(run())
    finally:
        TRIGGERS.configure(Rules(), 0)

    (task,) = found.json()["tasks"]
    assert (task["name"], task["trace_id"], task["trace_url"]) == (
        "http:/slow",
        TRACE,
        LINK,
    )
    assert task["regions"][0]["name"] == "db.fetch"
    assert b"db.fetch" in perfetto.content
    assert other.status_code == 404


def test_to_keep_a_recording_is_to_breathe(flight: Recorder) -> None:
    """Once a task at least: of thousands in one breath the loop stood still for 5 ms."""
    KEPT.clear()
    flight.set_flight(True)
    for number in range(50):
        with strobe.task(f"task-{number}"):
            pass
    block = flight.snapshot()
    assert block is not None
    breaths: list[int] = []
    KEPT.keep(Timeline.read(block), lambda: breaths.append(1))

    KEPT.clear()
    assert len(breaths) >= 50


def test_few_captures_are_kept(flight: Recorder) -> None:
    """The oldest goes first."""
    KEPT.clear()
    for number in range(CAP + 2):
        with strobe.task(f"task-{number}"):
            pass
        flight.set_flight(True)
        block = flight.snapshot()
        assert block is not None
        KEPT.keep(Timeline.read(block))
        last = max(t.serial for t in Timeline.read(block).tasks())

    found = list(KEPT.find(Wanted(serial=last)))
    first = min(task.serial for task in found[0].tasks())
    held = len(list(KEPT.find(Wanted(serial=first))))

    KEPT.clear()
    assert held == CAP
    assert len(found) == 1


@pytest.mark.parametrize("ask", [ask_asgi, ask_wsgi])
def test_without_a_recorder_it_says_so(ask: Ask) -> None:
    """Nothing is made up."""
    answer = ask(
        "/debug/tasks",
        bearer(token("trace")),
        settings=replace(SETTINGS, flight_recorder=False),
    )

    told = json.loads(answer.body)
    assert (told["recorder"], told["types"], told["live"]) == (None, [], [])


_WORK = """
import stroboscope as strobe
from stroboscope._core import LABELS, LabelCell
def request(trace, region):
    cell = LabelCell()
    link = bytes.fromhex(trace) + b"12345678"
    cell.begin_task("GET", "http:/x", link)
    LABELS.set(cell)
    with strobe.region(region):
        pass
    cell.end_task(None, 200)
    LABELS.set(None)
"""


def whole_answer(asked: Worker, path: str, **options: object) -> httpx.Response:
    """On a busy machine a worker may be late; then it is counted as missing."""
    for _ in range(10):
        answer = asked.ask(path, "trace", **options)
        if answer.headers.get("X-Stroboscope-Workers") == "2/2":
            break
    return answer


def test_any_worker_finds_a_request_of_any_other(
    tmp_path: Path, processor: Processor
) -> None:
    """By its trace id and its number; a trace that two have worked for, in one piece."""
    own, both = "0a" * 16, "0b" * 16
    codes = [
        _WORK + f"request('{own}', 'alone'); request('{both}', 'here')",
        _WORK + f"request('{both}', 'there')",
    ]
    with workers(tmp_path, *codes) as (one, two):
        elsewhere = whole_answer(two, f"/tasks/{own}")
        (found,) = elsewhere.json()["tasks"]
        by_number = whole_answer(two, f"/tasks/{found['id']}")
        whole = whole_answer(one, f"/tasks/{both}")
        traced = whole_answer(two, f"/tasks/{both}?format=perfetto")
        listed = whole_answer(two, "/tasks")
        page = whole_answer(two, "/tasks", headers=PAGE)
        unknown = two.ask(f"/tasks/{one.pid}-999999", "trace")

    assert by_number.json()["tasks"] == [found]
    assert found["id"].startswith(f"{one.pid}-")
    regions = {t["id"].split("-")[0]: t["regions"] for t in whole.json()["tasks"]}
    assert regions[str(one.pid)][0]["name"] == "here"
    assert regions[str(two.pid)][0]["name"] == "there"
    processor.load(traced.content)
    names = {row["name"] for row in processor.query("select name from slice")}
    assert {"here", "there"} <= names
    assert "alone" not in names
    counted = {
        pid: w["types"][0]["ended"] for pid, w in listed.json()["workers"].items()
    }
    assert counted == {str(one.pid): 2, str(two.pid): 1}
    whole_types = listed.json()["types"]
    assert [t["ended"] for t in whole_types] == [3]
    assert sum(whole_types[0]["latency"]["counts"]) == 3
    assert f"worker {one.pid}" in page.text
    assert f"worker {two.pid}" in page.text
    assert unknown.status_code == 404


_BURN = (
    _WORK
    + """
import threading, time
def burn(name):
    cell = LabelCell(label_set({"endpoint": "/burn", "method": "GET"}))
    cell.begin_task("GET", name, None)
    LABELS.set(cell)
    while True:
        sum(range(10_000))
from stroboscope.labels.sets import label_set
threading.Thread(target=burn, args=("http:/burn",), daemon=True).start()
"""
)


def test_cpu_is_sampled_in_all_workers_at_once(tmp_path: Path) -> None:
    """Whoever is asked: the sum of all, and each beside it; as data and as a page."""
    with workers(tmp_path, _BURN, _BURN) as (one, two):
        found = whole_answer(two, "/tasks?seconds=0.5")
        page = whole_answer(one, "/tasks?seconds=0.2", headers=PAGE)

    told = found.json()
    each = [w["types"][0] for w in told["workers"].values()]
    begun = [w["recorder"]["from"] for w in told["workers"].values()]
    assert len(each) == 2
    assert all(type_["cpu_s"] > 0.05 for type_ in each)
    (joined,) = told["types"]
    assert joined["cpu_s"] == pytest.approx(sum(t["cpu_s"] for t in each), abs=0.001)
    assert joined["time_s"] == pytest.approx(sum(t["time_s"] for t in each))
    assert joined["alive"] == len(told["live"]) == 2
    # Not one after the other.
    assert max(begun) - min(begun) < 0.4
    assert f"worker {two.pid}" in page.text
    assert "±" in page.text
