"""The file opens in Perfetto: its own processor answers for it."""

import asyncio
import json
import threading
from typing import Any

import pytest
from perfetto_sql import Processor

import stroboscope as strobe
from stroboscope._core import LABELS, LabelCell
from stroboscope.formats import chrome, perfetto
from stroboscope.formats.timeline import Timeline
from stroboscope.tracing import Recorder

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def request(i: int) -> None:
    cell = LabelCell()
    cell.begin_task("GET", None, TRACEPARENT if i == 0 else None)
    LABELS.set(cell)
    with strobe.region("db.fetch"):
        await asyncio.sleep(0.001)
    strobe.log("cache", "miss %d", i)
    await asyncio.gather(child(), asyncio.to_thread(render))
    cell.label_task("tenant=acme")
    cell.end_task(f"http:/item/{{{'id'}}}", 200 + i)


async def child() -> None:
    with strobe.region("child"):
        await asyncio.sleep(0.001)


def render() -> None:
    with strobe.region("render"):
        pass


@pytest.fixture
def line(flight: Recorder) -> Timeline:
    """Three requests at once, and a task that has not ended."""

    async def main() -> None:
        await asyncio.gather(*(request(i) for i in range(3)))

    asyncio.run(main())
    with pytest.raises(ValueError, match="x"), strobe.region("outside"):
        raise ValueError("x")
    with strobe.task("open"), strobe.region("unfinished"):
        block = flight.snapshot()
    assert block is not None
    return Timeline.read(block)


@pytest.fixture
def loaded(processor: Processor, line: Timeline) -> Processor:
    processor.load(perfetto.encode(line, [("clamped", "seconds=10")]))
    return processor


def args(processor: Processor, where: str) -> dict[str, str]:
    rows = processor.query(
        "select key, display_value from args join slice using(arg_set_id) "
        f"where {where}"
    )
    return {row["key"].removeprefix("debug."): row["display_value"] for row in rows}


def test_the_processor_finds_no_fault(loaded: Processor) -> None:
    """No error and no loss in its own statistics, and no slice out of place."""
    assert loaded.problems() == []
    negative = "select count(*) as n from slice where dur < -1"
    assert loaded.query(negative) == [{"n": 0}]


def test_a_task_is_a_track_with_nested_regions_and_logs(loaded: Processor) -> None:
    """The request around, its region and its log line in it."""
    rows = loaded.query(
        "select slice.name, depth, slice.dur from slice join track on "
        "slice.track_id = track.id where track.name glob 'http:*' order by track.id, ts"
    )

    first = [(row["name"], row["depth"]) for row in rows[:3]]
    assert first == [("http:/item/{id}", 0), ("db.fetch", 1), ("cache", 1)]
    assert rows[0]["dur"] > rows[1]["dur"] >= 1_000_000
    assert args(loaded, "name = 'cache' limit 1") == {"message": "miss 0"}


def test_what_runs_beside_is_below_the_task(loaded: Processor) -> None:
    """On tracks whose parent is the task's."""
    rows = loaded.query(
        "select distinct slice.name as name, parent.name as parent from slice "
        "join track on slice.track_id = track.id "
        "join track parent on track.parent_id = parent.id "
        "where track.name glob 'in parallel*'"
    )

    assert {row["name"] for row in rows} == {"child", "render"}
    assert all(row["parent"].startswith("http:/item/{id} #") for row in rows)


def test_a_task_says_what_it_is(loaded: Processor) -> None:
    """Number, method, status, labels, and OpenTelemetry's ids where it has them."""
    found = args(loaded, "name = 'http:/item/{id}' and depth = 0 order by ts limit 7")

    assert found.pop("task").isdigit()
    assert found == {
        "method": "GET",
        "status": "200",
        "tenant": "acme",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "span_id": "b7ad6b7169203331",
    }


def test_what_has_not_ended_reaches_to_the_end(loaded: Processor) -> None:
    """An open slice, as Perfetto draws it."""
    rows = loaded.query(
        "select name, dur from slice where name in ('open', 'unfinished')"
    )

    on_task = [row for row in rows if row["dur"] == -1]
    assert {row["name"] for row in on_task} == {"open", "unfinished"}


def test_a_failure_is_on_its_slice(loaded: Processor) -> None:
    """With the type of the exception beside it; outside of tasks on the thread."""
    assert args(loaded, "name = 'outside'")["failed"] == "yes"
    assert args(loaded, "name = 'ValueError'")["exception"] == "ValueError"
    rows = loaded.query(
        "select thread.name as thread from slice join thread_track on "
        "slice.track_id = thread_track.id join thread using(utid) "
        "where slice.name = 'outside'"
    )
    assert rows == [{"thread": threading.main_thread().name}]


def test_flows_follow_a_request_across_threads_and_child_tasks(
    loaded: Processor,
) -> None:
    """From the request on, through where it hopped to, on tracks of one request only."""
    rows = loaded.query(
        "select a.name as out, b.name as into_, ta.name as track_out, "
        "b.track_id as track_in from flow "
        "join slice a on a.id = slice_out join slice b on b.id = slice_in "
        "join track ta on ta.id = a.track_id"
    )

    reached = {row["into_"] for row in rows}
    assert {"child", "render", "http:/item/{id}"} <= reached
    chains = loaded.query(
        "select count(*) as n, count(distinct slice_in) as into_ from flow"
    )
    assert chains[0]["n"] == chains[0]["into_"], "each step has one step before it"


def test_threads_show_what_ran_on_them(loaded: Processor) -> None:
    """By name, with the tasks that were at work there."""
    rows = loaded.query(
        "select thread.name as thread, slice.name as name, count(*) as n from slice "
        "join thread_track on slice.track_id = thread_track.id join thread using(utid) "
        "group by 1, 2"
    )
    seen = {(row["thread"], row["name"]) for row in rows}

    assert (threading.main_thread().name, "http:/item/{id}") in seen
    assert any(t.startswith("asyncio_") and n == "http:/item/{id}" for t, n in seen)


def test_the_first_slice_says_how_far_to_trust_the_rest(loaded: Processor) -> None:
    """Clamps, losses and refusals, also when they are zero."""
    first = loaded.query("select name, ts from slice order by ts, id limit 1")
    found = args(loaded, "name = 'about this trace'")

    assert first[0]["name"] == "about this trace"
    assert found["clamped"] == "seconds=10"
    assert found["events_lost"] == found["names_refused"] == "0"
    assert int(found["events"]) > 30
    assert found["service"] == "shop"


def test_times_are_those_of_the_clock(loaded: Processor, line: Timeline) -> None:
    """One moment is known on three clocks, and slices stand where they were."""
    rows = loaded.query("select clock_name, clock_value from clock_snapshot")
    clocks = {row["clock_name"]: row["clock_value"] for row in rows}
    begin = loaded.query("select min(ts) as ts from slice where name = 'db.fetch'")
    task = next(iter(line.tasks()))
    span = next(iter(line.spans_of(task)))

    shift = clocks["BOOTTIME"] - clocks["MONOTONIC"]
    assert begin == [{"ts": span.begin_ns + shift}]
    assert abs(line.unix_ns(span.begin_ns) - clocks["REALTIME"]) < 600e9


def test_one_request_alone_is_a_trace(processor: Processor, line: Timeline) -> None:
    """A timeline of some tasks only is read like any other."""
    task = next(iter(line.tasks()))
    processor.load(perfetto.encode(line.only({task.serial})))

    rows = processor.query("select count(*) as n from slice where name = 'db.fetch'")
    assert rows == [{"n": 1}]
    assert processor.problems() == []


def test_two_processes_make_one_trace(processor: Processor, line: Timeline) -> None:
    """Files put one behind the other."""
    from dataclasses import replace

    other = replace(line, pid=line.pid + 1, service="other")
    processor.load(perfetto.encode(line) + perfetto.encode(other))

    rows = processor.query("select count(*) as n from slice where name = 'db.fetch'")
    names = processor.query("select name from process where name is not null")
    assert rows == [{"n": 6}]
    assert {row["name"] for row in names} == {"shop", "other"}
    assert processor.problems() == []


def test_the_chrome_form_says_the_same(processor: Processor, line: Timeline) -> None:
    """It is JSON, and the same processor finds the same slices in it."""
    encoded = chrome.encode(line, [("clamped", "seconds=10")])
    events: list[dict[str, Any]] = json.loads(encoded)["traceEvents"]
    counts = "select name, count(*) as n from slice where name in ({}) group by 1"
    names = "'db.fetch', 'child', 'render', 'http:/item/{id}', 'open', 'cache'"
    processor.load(encoded)
    by_json = processor.query(counts.format(names.replace("'http:/item/{id}', ", "")))
    assert processor.problems() == []
    processor.load(perfetto.encode(line))
    by_protobuf = processor.query(
        counts.format(names.replace("'http:/item/{id}', ", ""))
        .replace("from slice", "from slice join track on track_id = track.id")
        .replace("name, count", "slice.name as name, count")
        .replace("where name", "where track.name not glob 'tasks on*' and slice.name")
    )

    assert by_json == by_protobuf
    about = [e for e in events if e["name"] == "about this trace"]
    assert about[0]["args"]["clamped"] == "seconds=10"
    assert {e["ph"] for e in events} >= {"X", "M", "i", "s", "t"}
