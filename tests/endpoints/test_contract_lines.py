"""The lines of Go's contract that a table of tests does not make by itself."""

import json
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import scrapers
from asking import (
    KEY,
    SETTINGS,
    Ask,
    asgi_inner,
    ask_asgi,
    authorised,
    bearer,
    request,
    token,
)

from stroboscope._core import engine
from stroboscope._http.messages import Response
from stroboscope.endpoints import Surface
from stroboscope.endpoints.profiles import BUSY, NAMES
from stroboscope.formats.pprof_reader import decode
from stroboscope.integrations import asgi
from stroboscope.profiles import heap
from stroboscope.settings import Settings

#: Section 2: period type, period, default sample type, whether it has a duration.
PERIODS = {
    "pprof/profile": ("cpu/nanoseconds", 10_000_000, "", True),
    "pprof/wall": ("wall/nanoseconds", 10_000_000, "", True),
    "fgprof": ("wall/nanoseconds", 10_000_000, "", True),
    "pprof/heap": ("space/bytes", 524_288, "", False),
    "pprof/allocs": ("space/bytes", 524_288, "alloc_space", False),
    "pprof/goroutine": ("goroutine/count", 1, "", False),
    "pprof/threadcreate": ("threadcreate/count", 1, "", False),
    "pprof/block": ("contentions/count", 1, "", False),
    "pprof/mutex": ("contentions/count", 1, "", False),
}


def profile_headers() -> dict[str, str]:
    return bearer(token("profile"))


@pytest.mark.parametrize("path", PERIODS)
def test_h49_periods_and_times_are_gos(ask: Ask, path: str) -> None:
    """What stores build the names of series from; when it was taken, and over how long:
    what counts since the beginning has no duration."""
    kind, period, _, is_timed = PERIODS[path]
    if kind == "space/bytes":
        heap.set_rate(period)  # Go's; until it is switched on, it has that of last time
    began_ns = time.time_ns()
    answer = ask(f"/debug/{path}{'?seconds=0.1' * is_timed}", profile_headers())
    ended_ns = time.time_ns()

    found = scrapers.check(answer.body)
    strings = found.string_table
    told = f"{strings[found.period_type.type]}/{strings[found.period_type.unit]}"
    default = strings[found.default_sample_type]
    assert (told, found.period, default, found.duration_nanos > 0) == PERIODS[path]
    # Half a second: stacks may be those somebody else has just asked for.
    assert began_ns - 5e8 <= found.time_nanos <= ended_ns
    if is_timed:
        assert 1e8 <= found.duration_nanos <= ended_ns - began_ns


def test_the_index_of_profiles_is_gos(ask: Ask) -> None:
    """Its sentence, and a link to the text of each profile that has one."""
    for path in ("/debug/pprof/", "/debug/pprof"):
        answer = ask(path, profile_headers())

        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert b"Types of profiles available:" in answer.body
        for name in NAMES:
            assert f'href="/debug/pprof/{name}?debug=1"'.encode() in answer.body


@pytest.mark.parametrize("path", ["/pprof/trace", "/trace"])
def test_a_trace_is_a_file(ask: Ask, path: str) -> None:
    """At Go's address, too; parts of a second; one second where it is not said."""
    headers = bearer(token("trace"))
    answer = ask(f"/debug{path}?seconds=0.05", headers)
    began_s = time.monotonic()
    ask(f"/debug{path}?seconds=abc", headers)
    took_s = time.monotonic() - began_s

    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="trace"'
    assert 1.0 <= took_s < 5


def test_h29_the_command_line_is_unknown_or_a_name(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """404 as for any unknown profile; where it is allowed, argv[0] alone."""
    monkeypatch.setattr(sys, "argv", ["/srv/shop", "--password", "hunter2"])
    hidden = ask("/debug/pprof/cmdline", profile_headers())
    chosen = Settings(keys=(KEY,), service="shop", cmdline=True)
    shown = ask("/debug/pprof/cmdline", profile_headers(), settings=chosen)

    assert (hidden.status, hidden.body) == (404, b"Unknown profile\n")
    assert (shown.status, shown.body) == (200, b"/srv/shop")
    assert shown.headers["Content-Type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_symbols_are_asked_for_by_old_tools(ask: Ask, method: str) -> None:
    """Unknown and malformed addresses have no line; 64 KiB at most."""
    asked = "0x1+0xdeadbeef+nothing+0x"
    path = "/debug/pprof/symbol"
    answer = (
        ask(f"{path}?{asked}", profile_headers())
        if method == "GET"
        else ask(path, profile_headers(), "POST", body=asked.encode())
    )
    large = ask(path, profile_headers(), "POST", body=b"0x1+" * 20_000)

    assert (answer.status, answer.body) == (200, b"num_symbols: 1\n")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert large.status == 413


def test_goroutines_as_go_panics_with_them(ask: Ask) -> None:
    """`debug=2`: a block a stack, this thread's among them."""
    answer = ask("/debug/pprof/goroutine?debug=2", profile_headers())
    counted = ask("/debug/pprof/goroutine?debug=1", profile_headers()).body.decode()

    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert "Content-Disposition" not in answer.headers
    assert b"\n\n" in answer.body
    total = int(re.findall(r"\Agoroutine profile: total (\d+)\n", counted)[0])
    rows = re.findall(r"^(\d+) @( 0x[0-9a-f]+)+$", counted, re.MULTILINE)
    assert sum(int(count) for count, _ in rows) == total > 0
    assert re.search(r"^# labels: {", counted, re.MULTILINE)
    assert re.search(
        r"^#\t0x[0-9a-f]+\t\S+\+0x[0-9a-f]+\t[^\t\n]+:\d+$", counted, re.MULTILINE
    )


ERRORS = {
    400: ("/pprof/heap?seconds=x", {}),
    404: ("/pprof/nothing", {}),
    405: ("/pprof/heap", {"method": "PUT"}),
    406: ("/gc", {"headers": {"Accept": "a/b"}}),
    414: ("/pprof/heap?" + "x" * 9000, {}),
    415: ("/pprof/heap", {"headers": {"Content-Encoding": "gzip"}}),
    501: ("/pprof/wall?native=1", {}),
}


@pytest.mark.parametrize("status", ERRORS)
def test_h49_errors_are_one_line_for_pprof(ask: Ask, status: int) -> None:
    """Text marked for pprof, to be neither downloaded, cached nor sniffed; as RFC 9457
    has it for who asks for that by name."""
    path, options = ERRORS[status]
    headers = bearer(token("profile", "metrics")) | dict(options.get("headers", {}))
    method = str(options.get("method", "GET"))
    told = ask("/debug" + path, headers, method)
    accept = {"Accept": "application/problem+json, application/json;q=0"}
    problem = ask("/debug" + path, headers | accept, method)

    assert (told.status, problem.status) == (status, status)
    assert told.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert told.headers["X-Go-Pprof"] == "1"
    assert told.headers["X-Content-Type-Options"] == "nosniff"
    assert told.headers["Vary"] == "Authorization"
    assert re.fullmatch(rb"[^\n]+\n", told.body)
    assert problem.headers["Content-Type"] == "application/problem+json"
    assert json.loads(problem.body) == {
        "title": told.body.decode().strip(),
        "status": status,
    }
    for answer in (told, problem):
        assert "Content-Disposition" not in answer.headers
        assert answer.headers["Cache-Control"] == "no-store, private"


def test_h19_the_fifth_profile_is_told_when_to_come_again() -> None:
    """In Go's words, while four share the sampler."""
    surface = Surface(replace(SETTINGS, profile_seconds_cap=2.0))
    asked = replace(
        authorised("/debug/pprof/profile", token("profile")), query="seconds=2"
    )
    answers: list[Response] = []
    four = [
        threading.Thread(
            target=lambda: answers.append(
                surface.answer(replace(asked, query="seconds=1"))
            )
        )
        for _ in range(4)
    ]
    for one in four:
        one.start()
    deadline_s = time.monotonic() + 10
    while engine.info().windows < 4:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    fifth = surface.answer(replace(asked, query="seconds=0.01"))
    for one in four:
        one.join()

    assert (fifth.status, fifth.body.decode()) == (429, BUSY + "\n")
    assert 1 <= int(dict(fifth.headers)["Retry-After"]) <= 2
    assert {answer.status for answer in answers} == {200}


def test_a_client_that_leaves_a_difference_is_408() -> None:
    """What nobody reads any more, and the log does."""
    surface = Surface(Settings(keys=(KEY,), service="shop"))
    asked = authorised("/debug/pprof/heap", token("profile"))
    asked = replace(asked, query="seconds=30")
    threading.Timer(0.2, asked.cancellation.cancel).start()
    began_s = time.monotonic()
    answer = surface.answer(asked)

    assert (answer.status, answer.body) == (408, b"the client went away\n")
    assert time.monotonic() - began_s < 5


CAPPED: list[tuple[str, Callable[[], dict[str, str]], str]] = [
    ("/pprof/profile", profile_headers, "0.2"),
    ("/pprof/wall", profile_headers, "0.2"),
    ("/fgprof", profile_headers, "0.2"),
    *((f"/pprof/{name}", profile_headers, "0.2") for name in NAMES),
    ("/trace", lambda: bearer(token("trace")), "0.1"),
    ("/pprof/trace", lambda: bearer(token("trace")), "0.1"),
]


@pytest.mark.parametrize(("path", "headers", "cap"), CAPPED)
def test_h18_a_cap_that_cuts_is_said(
    path: str, headers: Callable[[], dict[str, str]], cap: str
) -> None:
    """In the header, and inside the artefact."""
    chosen = replace(SETTINGS, trace_seconds_cap=0.1)
    answer = ask_asgi(f"/debug{path}?seconds=90", headers(), settings=chosen)

    assert answer.status == 200
    assert answer.headers["X-Stroboscope-Clamped"] == f"seconds={cap}"
    if "trace" in path:
        assert f"seconds={cap}".encode() in answer.body
    else:
        comments = decode(answer.body).comments
        assert f"clamped: seconds={cap}" in comments, comments


@pytest.mark.parametrize(("path", "headers", "cap"), CAPPED)
def test_h18_strict_settings_refuse_what_a_cap_would_cut(
    path: str, headers: Callable[[], dict[str, str]], cap: str
) -> None:
    """By Go's words, before anything is collected; what is within is answered, and who
    says nothing gets what there is."""
    chosen = replace(SETTINGS, trace_seconds_cap=0.1, strict_seconds=True)
    app = asgi.Stroboscope(asgi_inner, chosen)
    began_s = time.monotonic()
    refused = ask_asgi(f"/debug{path}?seconds=90", headers(), app=app)
    took_s = time.monotonic() - began_s
    within = ask_asgi(f"/debug{path}?seconds=0.05", headers(), app=app)
    silent = ask_asgi(f"/debug{path}", headers(), app=app)

    said = f"seconds 90 exceeds max request duration of {cap}\n"
    assert (refused.status, refused.body.decode()) == (400, said)
    assert took_s < 5
    assert (within.status, silent.status) == (200, 200)


def test_h44_a_cap_that_cuts_is_in_the_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With what was asked for."""
    asked = authorised("/debug/pprof/goroutine", token("profile"))
    with caplog.at_level("INFO", "stroboscope.audit"):
        Surface(SETTINGS).answer(replace(asked, query="seconds=90"))

    ended = getattr(caplog.records[-1], "audit", {})
    assert ended["clamped"] == "seconds=0.2"
    assert ended["parameters"] == {"seconds": "90"}


def test_h05_the_challenge_is_the_same_everywhere(ask: Ask) -> None:
    """Both schemes, not to be cached, whatever the address and the method."""
    surface = Surface(SETTINGS)
    answers = [
        surface.answer(request(path, method=method))
        for path in ("/debug", "/debug/pprof/heap", "/debug/nothing", "/debug/share/x")
        for method in ("GET", "BREW")
    ]

    assert {answer.status for answer in answers} == {401}
    assert len({tuple(answer.all_headers()) for answer in answers}) == 1
    told = answers[0].all_headers()
    assert [value for name, value in told if name == "WWW-Authenticate"] == [
        'Bearer realm="stroboscope"',
        'Basic realm="stroboscope"',
    ]
    assert ("Cache-Control", "no-store, private") in told
    assert ask("/debug/nothing").body == b"unauthorized\n"
