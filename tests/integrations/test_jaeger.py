"""From a trace in a real Jaeger to the request's timeline here, and back."""

from collections.abc import Iterator

import httpx
import pytest
from jaegering import Jaeger, find_jaeger, jaeger, tags
from servers import UVICORN, serving, token

SITE = "traced_site:app"
SLOW_MS = 150


@pytest.fixture(scope="module")
def backend() -> Iterator[Jaeger]:
    program, why = find_jaeger()
    if program is None:
        pytest.skip(f"no Jaeger: {why}")
    with jaeger(program) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("order", ["inside", "outside", "later"])
def test_a_slow_trace_leads_to_its_timeline_and_back(
    backend: Jaeger, order: str
) -> None:
    """Its span names the task; the surface finds it by the trace's id, whichever worker
    has it, and says where the time went; its link is the trace in Jaeger."""
    service = f"shop-{order}"
    with serving(
        UVICORN + "--workers 2",
        SITE,
        TRACED_ORDER=order,
        TRACED_SERVICE=service,
        TRACED_OTLP=backend.otlp_url,
        STROBOSCOPE_TRACE_URL=backend.query_url + "/api/traces/{trace_id}",
    ) as (base, _):
        for number in (1, 2, SLOW_MS, 3):
            httpx.get(f"{base}/item/{number}").raise_for_status()
        found = backend.slow(service, "/item/{item}", SLOW_MS - 10)
        headers = {"Authorization": f"Bearer {token('trace')}"}
        answer = httpx.get(f"{base}/debug/tasks/{found['traceID']}", headers=headers)
        assert answer.status_code == 200, (answer.text, answer.headers)
        (task,) = answer.json()["tasks"]
        back = httpx.get(task["trace_url"]).json()["data"]

    (span,) = [one for one in found["spans"] if "stroboscope.task.id" in tags(one)]
    assert tags(span)["stroboscope.task.id"] == task["id"]
    assert tags(span)["stroboscope.endpoint"] == "/item/{item}"
    assert span["spanID"] == task["span_id"]
    assert span["operationName"].startswith("GET")
    assert span["duration"] / 1000 == pytest.approx(task["duration_ms"], abs=40)
    assert task["time_ms"]["db.fetch"] >= SLOW_MS - 1
    assert [region["name"] for region in task["regions"]] == ["db.fetch", "render"]
    assert [one["traceID"] for one in back] == [task["trace_id"]]
