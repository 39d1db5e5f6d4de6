"""Django's own instrumentation and our middleware, whichever is around the other."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "opentelemetry.instrumentation.django",
    reason="opentelemetry-instrumentation-django is part of the extra `test`",
)

#: Serves three requests and prints the tasks, the server's spans, and the evidence.
SITE = """
import asyncio, json, sys, time
from django.conf import settings
from django.http import HttpResponse
from django.urls import path

def item(request, n):
    with strobe.region("db.fetch"):
        time.sleep(0.03)
    return HttpResponse("x", status=503 if n == 9 else 200)

carrier, position, folder, parent = sys.argv[1:]
settings.configure(
    SECRET_KEY="x" * 50, ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__,
    INSTALLED_APPS=["stroboscope.integrations.django"],
    MIDDLEWARE=["stroboscope.integrations.django.middleware.StroboscopeMiddleware"],
    STROBOSCOPE={"keys": (KEY,), "service": "shop", "rundir": folder,
                 "evidence": "errors"},
)
urlpatterns = [path("item/<int:n>/", item)]
import stroboscope as strobe
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.instrumentation.django import DjangoInstrumentor
kept = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(kept))
trace.set_tracer_provider(provider)
DjangoInstrumentor().instrument(
    middleware_position=int(position), is_sql_commentor_enabled=False)
import django; django.setup()
from django.test import AsyncClient, Client
from stroboscope._core import recording
from stroboscope.formats.timeline import Timeline
from stroboscope.tracing import recorder
headers = {"traceparent": parent} if parent else {}
def get(number):
    if carrier == "wsgi":
        return Client().get(f"/item/{number}/", headers=headers)
    return asyncio.run(AsyncClient().get(f"/item/{number}/", headers=headers))
get(1)  # the first request begins the recorder, on a thread of ours
while not recording.trace_wanted():
    time.sleep(0.01)
kept.clear()
get(7), get(9)
line = Timeline.read(recorder.snapshot())
print(json.dumps({
    "tasks": [{"id": t.serial, "name": line.name(t.name), "status": t.status,
               "trace": t.trace_id.hex(), "span": t.span_id.hex()}
              for t in line.tasks() if t.status][-2:],  # the first may be recorded
    "spans": [{"trace": f"{s.context.trace_id:032x}", "span": f"{s.context.span_id:016x}",
               "attributes": dict(s.attributes), "events": [e.name for e in s.events]}
              for s in kept.get_finished_spans() if s.kind is trace.SpanKind.SERVER],
}))
"""
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def served(tmp_path: Path, *arguments: str) -> Any:
    from stroboscope.auth.keys import generate_key

    site = SITE.replace("KEY,", f"{generate_key()!r},")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", site, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert done.stdout, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("position", ["0", "1"], ids=["around us", "inside"])
@pytest.mark.parametrize("carrier", ["wsgi", "asgi"])
def test_a_request_of_django_and_its_span_name_each_other(
    tmp_path: Path, carrier: str, position: str
) -> None:
    """Ids, number and endpoint; the caller's trace goes on."""
    found = served(tmp_path, carrier, position, str(tmp_path), PARENT)

    assert [task["name"] for task in found["tasks"]] == ["http:/item/<int:n>/"] * 2
    assert [task["status"] for task in found["tasks"]] == [200, 503]
    for task, span in zip(found["tasks"], found["spans"], strict=True):
        assert task["trace"] == span["trace"] == TRACE
        assert task["span"] == span["span"]
        told = span["attributes"]
        assert told["stroboscope.task.id"].endswith(f"-{task['id']}")
        assert told["stroboscope.endpoint"] == "/item/<int:n>/"
    # Inside, the span is over before its status is known to us: see docs/trace.md.
    events = [span["events"] for span in found["spans"]]
    assert events == [[], [] if position == "1" else ["stroboscope.evidence"]]
