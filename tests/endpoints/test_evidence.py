"""Evidence is kept under its budget, given to those who may read traces, and counted."""

import asyncio
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from asking import (
    BASE,
    KEY,
    FakeClock,
    admin,
    ask_wsgi,
    authorised,
    bearer,
    token,
    wsgi_inner,
)
from fastapi import FastAPI
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.wsgi import (
    OpenTelemetryMiddleware as OpenTelemetryWSGI,
)
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id
from werkzeug.test import Client

import stroboscope as strobe
from stroboscope.endpoints import Surface
from stroboscope.endpoints import evidence as module
from stroboscope.endpoints.evidence import Evidence
from stroboscope.errors import SettingsError
from stroboscope.formats.timeline import Timeline
from stroboscope.integrations import asgi as our_asgi
from stroboscope.integrations import wsgi
from stroboscope.rules import Rules
from stroboscope.settings import Settings
from stroboscope.testing.canaries import planted
from stroboscope.tracing import Recorder, SpanLinks, recorder
from stroboscope.tracing.triggers import TRIGGERS, Hit
from stroboscope.workers.folder import Folder

HIT = Hit("latency", "/slow/{id}", "it took 2.000 s", {"endpoint": "/slow/{id}"})


@pytest.fixture(autouse=True)
def no_rule_stays_in_force() -> Iterator[None]:
    """As with every other switch of the process."""
    yield
    TRIGGERS.configure(Rules(), 0)


@pytest.fixture
def flight() -> Iterator[Recorder]:
    """The process's recorder, on, with one task in it."""
    recorder.close()
    recorder.set_fraction(1.0)
    recorder.configure("shop", 1 << 20)
    recorder.set_flight(True)
    with strobe.task("early"), strobe.region("wide"):
        pass
    yield recorder
    recorder.close()


def store(base: Path, rules: str = "latency=1", clock: Any = None) -> Evidence:
    settings = Settings(
        keys=(KEY,), service="shop", evidence=rules, evidence_dir=str(base)
    )
    return Evidence(settings, None, clock or FakeClock())


def settled(made: Evidence, count: int) -> Evidence:
    """Once so many hits have come to their end."""
    for _ in range(500):
        if made.kept + sum(made.dropped.values()) >= count and not made._works:
            return made
        time.sleep(0.01)
    raise AssertionError((made.kept, made.dropped))


def test_a_piece_says_what_it_is_and_can_be_read(
    tmp_path: Path, flight: Recorder
) -> None:
    """Its rule, endpoint, labels and ids stand in it; its block is the recorder's."""
    made = store(tmp_path)
    made.take(HIT)
    settled(made, 1)

    (listed,) = made.pieces()
    piece = made.get(listed.id)

    assert piece is not None
    assert piece.about == listed.about
    assert piece.about["labels"] == {"endpoint": "/slow/{id}"}
    assert piece.about["pid"] == os.getpid()
    assert piece.reason == "latency: /slow/{id} it took 2.000 s"
    line = piece.timeline()
    assert [line.name(task.name) for task in line.tasks()] == ["early"]
    (name,) = [n for n in os.listdir(tmp_path / "shop") if n.startswith("evidence-")]
    assert (tmp_path / "shop" / name).stat().st_mode & 0o777 == 0o600


def test_a_hundred_hits_leave_one_piece_a_window_and_so_many_an_hour(
    tmp_path: Path, flight: Recorder
) -> None:
    """Of an endpoint, and of all; the rest is counted by reason."""
    clock = FakeClock()
    made = store(tmp_path, "latency=1 per_hour=3 window=60", clock)
    for number in range(100):
        made.take(Hit("latency", f"/{number % 5}", ""))
        settled(made, number + 1)

    assert made.kept == len(made.pieces()) == 3
    assert made.dropped == {"window": 57, "hour": 40}
    clock.now_s += 3601
    made.take(Hit("latency", "/0", ""))
    settled(made, 101)
    assert made.kept == 4, "another hour"


def test_workers_of_a_host_share_one_budget(tmp_path: Path, flight: Recorder) -> None:
    """What one has kept, the other does not keep again, nor beyond the hour's number."""
    one, other = (store(tmp_path, "latency=1 per_hour=2") for _ in range(2))
    settled_one = one.take(HIT) or settled(one, 1)
    other.take(HIT)
    other.take(Hit("error", "/b", ""))
    settled(other, 2)
    one.take(Hit("error", "/c", ""))
    settled(one, 2)

    assert settled_one.kept == other.kept == 1
    assert other.dropped == {"window": 1}
    assert one.dropped == {"hour": 1}
    assert {p.id for p in one.pieces()} == {p.id for p in other.pieces()}


def test_the_oldest_make_room(
    tmp_path: Path, flight: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes and the number of all files are bounded."""
    monkeypatch.setattr(module, "FILES_CAP", 3)
    clock = FakeClock()
    made = store(tmp_path, clock=clock)
    for number in range(6):
        clock.now_s += 1
        made.take(Hit("latency", f"/{number}", ""))
        settled(made, number + 1)
    endpoints = [piece.about["endpoint"] for piece in made.pieces()]
    assert endpoints == ["/5", "/4", "/3"]

    size = made.pieces()[0].file_bytes
    object.__setattr__(made.rules, "bytes", 2 * size + size // 2)
    clock.now_s += 1
    made.take(Hit("latency", "/6", ""))
    settled(made, 7)
    assert [piece.about["endpoint"] for piece in made.pieces()] == ["/6", "/5"]


def test_a_folder_that_cannot_be_written_is_counted_and_said(
    tmp_path: Path, flight: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Once in the log, each time in the count, and in the doctor's report."""
    (tmp_path / "shop").write_text("a file where the folder should be")
    made = store(tmp_path)
    made.take(HIT)
    made.take(Hit("error", "/b", ""))
    settled(made, 2)

    assert made.dropped == {"disk": 2}
    assert str(tmp_path) in made.state()
    assert len([r for r in caplog.records if "not kept" in r.message]) == 1
    assert made.pieces() == []
    (tmp_path / "shop").unlink()
    made.take(Hit("error", "/c", ""))
    assert settled(made, 3).kept == 1
    assert made.state() == "on"


def test_a_full_disk_leaves_no_torn_file(tmp_path: Path, flight: Recorder) -> None:
    """What could not be written whole is not there, under no name."""
    made = store(tmp_path)
    made.take(HIT)
    settled(made, 1)
    before = sorted(os.listdir(tmp_path / "shop"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        made.take(Hit("error", "/b", ""))
        settled(made, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert made.dropped == {"disk": 1}
    assert "too large" in made.failure
    assert sorted(os.listdir(tmp_path / "shop")) == before


def test_without_a_recording_nothing_is_kept(tmp_path: Path) -> None:
    """And it is counted."""
    recorder.close()
    made = store(tmp_path)
    made.take(HIT)

    assert settled(made, 1).dropped == {"recorder": 1}


def test_torn_and_foreign_files_are_no_pieces(tmp_path: Path, flight: Recorder) -> None:
    """Whatever lies there under such a name: it is not listed, or refused."""
    made = store(tmp_path)
    made.take(HIT)
    (piece,) = settled(made, 1).pieces()
    folder = Folder(str(tmp_path), "shop")
    name = "evidence-1700000000000-7-00000000-" + 16 * "0"
    for content in (b"", b"[]\n", b"{}", b"\xff\n", b"{" * 100_000):
        folder.write(name, content)
        assert piece in made.pieces()
        assert made.get("7-" + 16 * "0") is None or content == b"{}"
    assert made.get("7-" + 15 * "0") is None
    assert made.get("../../etc/passwd") is None


def app_for(base: Path) -> Any:
    settings = Settings(
        keys=(KEY,), service="shop", evidence="latency=1", evidence_dir=str(base)
    )
    return wsgi.Stroboscope(wsgi_inner, settings)


def test_who_may_read_traces_may_read_evidence(
    tmp_path: Path, flight: Recorder
) -> None:
    """Listed, given in both forms, shared by a link, dropped by an admin, no one else."""
    made = store(tmp_path)
    made.take(HIT)
    (piece,) = settled(made, 1).pieces()
    app, path = app_for(tmp_path), f"/debug/captures/{piece.id}"
    mine = bearer(token("profile", "trace"))
    (listed,) = json.loads(ask_wsgi("/debug/captures", mine, app=app).body)
    assert (listed["id"], listed["kind"]) == (piece.id, "evidence")
    assert listed["parameters"]["rule"] == "latency"

    others = bearer(token("profile"))
    assert json.loads(ask_wsgi("/debug/captures", others, app=app).body) == []
    assert ask_wsgi(path, others, app=app).status == 403
    given = ask_wsgi(path, mine, app=app)
    assert b"wide" in given.body
    chrome = ask_wsgi(path + "?format=json", mine, app=app)
    assert "wide" in {e.get("name") for e in json.loads(chrome.body)["traceEvents"]}
    assert ask_wsgi(path + "?format=svg", mine, app=app).status == 400

    body = json.dumps({"path": f"/captures/{piece.id}?format=json"}).encode()
    kind = {"Content-Type": "application/json"}
    asked = {"method": "POST", "body": body, "app": app}
    assert ask_wsgi("/debug/share", others | kind, **asked).status == 403
    link = json.loads(ask_wsgi("/debug/share", mine | kind, **asked).body)["url"]
    assert ask_wsgi(link, app=app).body == chrome.body

    assert ask_wsgi(path, mine, method="DELETE", app=app).status == 403
    assert ask_wsgi(path, admin(), method="DELETE", app=app).status == 200
    assert made.pieces() == []
    assert ask_wsgi(path, mine, app=app).status == 404


@pytest.mark.parametrize(
    "rules",
    [
        *("latency", "latency=0", "latency=-1", "latency=nan", "latency=x", "p99=1"),
        *("errors=1", "rss=1", "rss=1.5e6.1", "tasks=1.5", "latency=1 latency=2"),
        *("per_hour=0", "window=0", "bytes=1", "colour=blue"),
    ],
)
def test_rules_are_checked_as_settings_are_made(rules: str) -> None:
    """With what is allowed."""
    with pytest.raises(SettingsError, match="evidence is"):
        Settings(evidence=rules)


def test_rules_need_somewhere_to_keep_what_they_find() -> None:
    """A run directory, or one of their own; and nothing is kept without a rule."""
    with pytest.raises(SettingsError, match="evidence_dir"):
        Settings(evidence="errors", rundir="off")
    with pytest.raises(SettingsError, match="absolute"):
        Settings(evidence_dir="here")
    assert Settings(evidence="per_hour=3", rundir="off").evidence_rules.per_hour == 3
    assert not Settings().evidence_rules.are_any


def test_a_long_ring_is_cut_to_its_last_events(tmp_path: Path) -> None:
    """The copy is bounded whatever the recorder holds, and its events stay whole."""
    recorder.close()
    recorder.configure("shop", 1 << 20)
    recorder.set_flight(True)
    for number in range(20_000):
        with strobe.task(f"t{number % 7}"):
            pass
    whole, cut = recorder.snapshot(), recorder.snapshot(2048)

    assert whole is not None
    assert cut is not None
    assert len(cut) < len(whole) - (30_000 << 5)
    line, last = Timeline.read(whole), Timeline.read(cut)
    assert last.torn == 0
    assert last.events == 2048
    ended = [task.serial for task in line.tasks()]
    assert [task.serial for task in last.tasks()] == ended[-1024:]


#: Keeps pieces without an end, and is killed meanwhile.
_WRITER = """
import sys, time
from stroboscope.endpoints.evidence import Evidence
from stroboscope.settings import Settings
from stroboscope.tracing import recorder
from stroboscope.tracing.triggers import Hit
import stroboscope as strobe
recorder.configure("shop", 1 << 20)
recorder.set_flight(True)
for _ in range(30_000):
    with strobe.task("busy"):
        pass
made = Evidence(Settings(keys=(sys.argv[1],), service="shop",
    evidence="latency=1 per_hour=1000", evidence_dir=sys.argv[2]), None)
if sys.argv[3] == "last":
    import os
    os.rename = lambda *names, **folders: (print("ready", flush=True), time.sleep(60))
    made.take(Hit("latency", "/", ""))
    time.sleep(60)
print("ready", flush=True)
for number in range(1000):
    made.take(Hit("latency", f"/{sys.argv[3]}/{number}", ""))
    time.sleep(0.003)
"""


def killed_writer(base: Path, how: str, after_s: float) -> None:
    command = [sys.executable, "-c", _WRITER, KEY, str(base), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(after_s)
        writer.kill()


def test_whoever_is_killed_while_it_writes_leaves_no_torn_file(tmp_path: Path) -> None:
    """What is there under a name is whole."""
    for number in range(3):
        killed_writer(tmp_path, str(number), 0.15 + 0.013 * number)

    made = store(tmp_path)
    names = [name for name in os.listdir(tmp_path / "shop") if "evidence-" in name]
    assert len(made.pieces()) == len(names) >= 3
    for piece in made.pieces():
        whole = made.get(piece.id)
        assert whole is not None
        assert whole.timeline().events > 10_000


def test_a_piece_is_there_once_all_of_it_is_written(
    tmp_path: Path, flight: Recorder
) -> None:
    """Killed before its last step it is under no name; what is left goes later."""
    killed_writer(tmp_path, "last", 0)

    made, folder = store(tmp_path), tmp_path / "shop"
    assert made.pieces() == []
    (left,) = [path for path in folder.iterdir() if path.stat().st_size]
    assert "evidence" not in left.name
    os.utime(left, (1, 1))
    made.take(HIT)
    settled(made, 1)
    assert not left.exists()
    assert len(made.pieces()) == 1


def test_evidence_holds_names_and_labels_only(tmp_path: Path, flight: Recorder) -> None:
    """No header, cookie, path, query, local, argument or message is in its file."""
    settings = Settings(
        keys=(KEY,),
        service="shop",
        evidence="errors latency=0.001",
        evidence_dir=str(tmp_path),
        tenant=lambda environ: environ.get("HTTP_X_TENANT"),
        tenants=("acme",),
    )

    def failing(environ: Any, start_response: Any) -> list[bytes]:
        local = environ["HTTP_COOKIE"] + environ["QUERY_STRING"]
        raise ValueError(local)

    app = wsgi.Stroboscope(failing, settings)
    app.surface.wake()
    with planted() as secret:
        client = Client(app, use_cookies=False)
        with pytest.raises(ValueError, match="canary"):
            client.get(
                f"/{secret['path']}?q={secret['query']}",
                headers={
                    "X-Secret": secret["header"],
                    "Cookie": f"session={secret['cookie']}",
                    "X-Tenant": secret["tenant"],
                },
            )
        made = settled(app.surface.desk.evidence, 1)
        (piece,) = made.pieces()
        whole = made.get(piece.id)

    assert whole is not None
    assert piece.about["rule"] == "error"
    assert piece.about["labels"]["endpoint"] == "(unmatched)"
    found = json.dumps(whole.about).encode() + whole.block
    assert b"(unmatched)" in whole.block
    assert [place for place, text in secret.items() if text.encode() in found] == []


def test_the_span_of_the_request_says_where_its_evidence_is(
    tmp_path: Path, flight: Recorder
) -> None:
    """An event with id, rule and address; its ids are the evidence's own."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = Settings(
        keys=(KEY,),
        service="shop",
        evidence="errors",
        evidence_dir=str(tmp_path),
        public_url="https://shop.example/",
    )

    def failing(environ: Any, start_response: Any) -> list[bytes]:
        start_response("503 Busy", [("Content-Type", "text/plain")])
        return [b""]

    app = wsgi.Stroboscope(failing, settings)
    app.surface.wake()
    with provider.get_tracer("test").start_as_current_span("GET"):
        Client(app).get("/").close()
    made = settled(app.surface.desk.evidence, 1)
    (piece,) = made.pieces()
    (span,) = exporter.get_finished_spans()
    (event,) = [one for one in span.events if one.name == "stroboscope.evidence"]

    assert span.context is not None
    assert event.attributes is not None
    assert dict(event.attributes) == {
        "stroboscope.evidence.id": piece.id,
        "stroboscope.evidence.rule": "error",
        "stroboscope.url": f"https://shop.example/debug/captures/{piece.id}",
    }
    assert piece.about["trace_id"] == format_trace_id(span.context.trace_id)
    assert piece.about["span_id"] == format_span_id(span.context.span_id)


class Inside:
    """A service whose instrumentation is inside of our middleware."""

    def __init__(self, base: Path, rules: str) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SpanLinks())
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.settings = Settings(
            keys=(KEY,),
            service="shop",
            evidence=rules,
            evidence_dir=str(base),
            public_url="https://shop.example",
        )

    def server(self) -> ReadableSpan:
        (found,) = [
            one
            for one in self.exporter.get_finished_spans()
            if one.kind.name == "SERVER"
        ]
        return found

    def fastapi(self, path: str) -> Evidence:
        """What is kept of one request to a FastAPI application."""
        app = FastAPI()

        @app.get("/slow")
        async def slow() -> None:
            await asyncio.sleep(0.03)

        @app.get("/broken")
        async def broken() -> None:
            raise ValueError

        FastAPIInstrumentor.instrument_app(app, tracer_provider=self.provider)
        served = our_asgi.Stroboscope(app, self.settings)
        served.surface.wake()

        async def run() -> None:
            transport = httpx.ASGITransport(served, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
                await client.get(path)

        asyncio.run(run())
        return settled(served.surface.desk.evidence, 1)

    def flask(self, path: str) -> Evidence:
        """The same of WSGI."""

        def app(environ: Any, start_response: Any) -> list[bytes]:
            status = "503 Busy" if environ["PATH_INFO"] == "/broken" else "200 OK"
            time.sleep(0.03)
            start_response(status, [("Content-Type", "text/plain")])
            return [b""]

        inner = OpenTelemetryWSGI(app, tracer_provider=self.provider)
        served = wsgi.Stroboscope(inner, self.settings)
        served.surface.wake()
        Client(served).get(path).close()
        return settled(served.surface.desk.evidence, 1)


@pytest.mark.parametrize("kind", ["fastapi", "flask"])
@pytest.mark.parametrize(
    ("rules", "path", "rule"),
    [("errors", "/broken", "error"), ("latency=0.02", "/slow", "latency")],
)
def test_a_span_inside_of_us_says_where_its_evidence_is(
    tmp_path: Path, flight: Recorder, kind: str, rules: str, path: str, rule: str
) -> None:
    """Judged while it is open, and only once; with all labels of the request's end."""
    inside = Inside(tmp_path, rules)

    made = getattr(inside, kind)(path)

    (piece,) = made.pieces()
    span = inside.server()
    (event,) = [one for one in span.events if one.name == "stroboscope.evidence"]
    assert event.attributes is not None
    assert event.attributes["stroboscope.evidence.id"] == piece.id
    assert event.attributes["stroboscope.evidence.rule"] == rule
    assert span.attributes is not None
    assert span.attributes["stroboscope.url"].endswith(piece.id)  # type: ignore[union-attr]
    assert span.context is not None
    assert piece.about["span_id"] == format_span_id(span.context.span_id)
    assert piece.about["labels"].keys() >= {"status", "latency"}
    assert (made.kept, made.dropped) == (1, {})


def test_what_an_open_span_cannot_know_is_in_the_log(
    tmp_path: Path, flight: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that nobody inside answered: the span is over, its trace is named."""
    inside = Inside(tmp_path, "errors")

    def app(environ: Any, start_response: Any) -> list[bytes]:
        raise ValueError

    inner = OpenTelemetryWSGI(app, tracer_provider=inside.provider)
    served = wsgi.Stroboscope(inner, inside.settings)
    served.surface.wake()
    with pytest.raises(ValueError, match=r"^$"):
        Client(served).get("/")
    (piece,) = settled(served.surface.desk.evidence, 1).pieces()

    span = inside.server()
    assert span.context is not None
    trace_id = format_trace_id(span.context.trace_id)
    assert piece.about["trace_id"] == trace_id
    (said,) = [r.message for r in caplog.records if piece.id in r.message]
    assert said.endswith(f"(trace {trace_id})")


def test_a_sidecar_has_the_evidence_of_workers_that_are_gone(
    tmp_path: Path, flight: Recorder
) -> None:
    """It lists what lies there although nobody answers it, and gives it out."""
    made = store(tmp_path)
    made.take(HIT)
    (piece,) = settled(made, 1).pieces()
    settings = Settings(keys=(KEY,), service="shop", rundir=str(tmp_path))
    beside = Surface(settings, is_worker=False)

    text = token("profile", "trace")
    answer = beside.answer(authorised("/debug/captures", text))
    (listed,) = json.loads(answer.body)
    assert listed["id"] == piece.id
    given = beside.answer(authorised(f"/debug/captures/{piece.id}", text))
    assert given.status == 200
    assert b"wide" in given.body
