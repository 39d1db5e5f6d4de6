"""A query on any profile answers a question: sliced, compared, in the form asked for."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest
from asking import (
    SETTINGS,
    Answer,
    Ask,
    asgi_inner,
    ask_asgi,
    bearer,
    token,
    wsgi_inner,
)
from pprofing import Pprof, made_up, rows
from scrapers import check

from stroboscope._http.messages import Response
from stroboscope.endpoints import collectors, profiles, slicing
from stroboscope.endpoints.desk import Desk
from stroboscope.endpoints.routes import ROUTES
from stroboscope.formats.filters import OPTIONS
from stroboscope.formats.pprof_reader import decode
from stroboscope.formats.profile import Frame, Profile, Sample, columns
from stroboscope.integrations import asgi, wsgi

WHOLE, LATER = made_up(1), made_up(2)
HEADER = "X-Stroboscope-Capture"
PATHS = [
    *(f"/pprof/{name}" for name in (*profiles.NAMES, "wall", "profile")),
    "/fgprof",
]


class Site:
    """The surface over one carrier, whose mutex profile is what a test says it is."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        is_asgi = ask is ask_asgi
        self.app: Any = (
            asgi.Stroboscope(asgi_inner, SETTINGS)
            if is_asgi
            else wsgi.Stroboscope(wsgi_inner, SETTINGS)
        )
        self.now = WHOLE

    def get(self, path: str, query: str = "", **headers: str) -> Answer:
        where = f"/debug{path}" + (f"?{query}" if query else "")
        return self._ask(where, bearer(token()) | headers, app=self.app)

    def mutex(self, **parameters: str) -> Answer:
        query = "&".join(f"{k}={quote(v, safe='')}" for k, v in parameters.items())
        return self.get("/pprof/mutex", query)


@pytest.fixture
def site(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(ask)

    def mutex(desk: Desk, is_fresh: bool) -> Profile:
        return made.now

    row: Mapping[str, Any] = {**collectors.COLLECTORS, "mutex": mutex}
    monkeypatch.setattr(profiles, "COLLECTORS", row)
    return made


@pytest.mark.parametrize(
    "case",
    [
        {"tagfocus": "endpoint=/checkout"},
        {"tagfocus": "endpoint:/checkout,tenant:T17", "focus": "main"},
        {"ignore": "Lock", "tagignore": "status=^5", "tagshow": "endpoint"},
        {"hide": "lib/", "show": "shop|lib", "taghide": "pid"},
        {"tagroot": "endpoint", "tagleaf": "tenant"},
    ],
    ids=lambda case: "&".join(case),
)
def test_a_slice_is_what_pprof_makes_of_the_whole(
    site: Site, go_pprof: list[str], tmp_path: Path, case: dict[str, str]
) -> None:
    """The whole file from the same surface, cut by the real pprof, is our answer."""
    answer = site.mutex(**case)
    whole = site.get(f"/captures/{answer.headers[HEADER]}")
    pprof = Pprof(go_pprof, decode(whole.body), tmp_path)

    assert answer.headers["Content-Disposition"] == 'attachment; filename="mutex"'
    check(answer.body)
    assert rows(decode(whole.body)) == rows(WHOLE)
    theirs = pprof.sliced(*(f"-{name}={value}" for name, value in case.items()))
    assert rows(decode(answer.body)) == rows(theirs)


def test_a_curl_alone_answers_who_waits_on_checkout(site: Site) -> None:
    """`top` is a table to read, of the slice, with its share of the whole."""
    answer = site.mutex(tagfocus="endpoint=/checkout", top="3")
    lines = answer.body.decode().splitlines()

    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert lines[0] == "Type: delay"
    assert lines[1].startswith("Showing 3 of 11 functions, ")
    assert len(lines) == 6
    counted = site.mutex(top="3", sample_index="contentions").body.decode()
    assert counted.splitlines()[0] == "Type: contentions"
    assert site.mutex(top="3", sample_index="0").body.decode() == counted


def test_the_table_in_json_has_exact_values(
    site: Site, go_pprof: list[str], tmp_path: Path
) -> None:
    """Those of `pprof -top` of the whole file, by own or cumulative cost."""
    pprof = Pprof(go_pprof, WHOLE, tmp_path)
    for order, option in (("flat", "-flat"), ("cum", "-cum")):
        answer = site.mutex(format="json", top="5", sort=order, focus="main")
        found = json.loads(answer.body)

        assert found["total"] == WHOLE.total(1)
        shown = [(r["function"], r["flat"], r["cum"]) for r in found["functions"]]
        assert shown == pprof.top("-focus=main", option)[:5]


def test_every_form_has_its_type_and_its_total(site: Site) -> None:
    """Folded stacks, speedscope, a call tree: all of the slice."""
    total = decode(site.mutex(tagfocus="tenant=T17").body).total(1)
    answers = {
        form: site.mutex(tagfocus="tenant=T17", format=form)
        for form in ("pprof", "folded", "speedscope", "json")
    }
    types = {form: answer.headers["Content-Type"] for form, answer in answers.items()}

    assert types == {
        "pprof": "application/octet-stream",
        "folded": "text/plain; charset=utf-8",
        "speedscope": "application/json",
        "json": "application/json",
    }
    lines = answers["folded"].body.decode().splitlines()
    assert sum(int(line.rpartition(" ")[2]) for line in lines) == total
    assert json.loads(answers["json"].body)["root"]["total"] == total
    flames = json.loads(answers["speedscope"].body)
    assert sum(flames["profiles"][1]["weights"]) == total
    named = answers["speedscope"].headers["Content-Disposition"]
    assert named == 'attachment; filename="mutex.speedscope.json"'
    assert all(HEADER in answer.headers for answer in answers.values())


def test_a_capture_is_what_a_later_profile_is_compared_with(
    site: Site, go_pprof: list[str], tmp_path: Path
) -> None:
    """`base` subtracts it as `pprof -base` does; then the difference is sliced."""
    first = site.mutex()
    site.now = LATER
    number = first.headers[HEADER]
    answer = site.mutex(base=number, tagfocus="endpoint=/checkout")

    file = tmp_path / "first.pb.gz"
    file.write_bytes(first.body)
    pprof = Pprof(go_pprof, LATER, tmp_path)
    theirs = pprof.sliced(f"-base={file}", "-tagfocus=endpoint=/checkout")
    assert rows(decode(answer.body)) == rows(theirs)
    site.now = WHOLE
    assert decode(site.mutex(base=number).body).samples == []


def test_the_text_form_is_sliced_too(site: Site) -> None:
    """`debug=1` shows what the slice has."""
    shown = site.mutex(debug="1", tagfocus="endpoint=/checkout").body.decode()

    assert shown.startswith("--- mutex:")
    assert shown.count('"endpoint": "/checkout"') == shown.count("# labels:")


BAD = [
    ("focus=(", "focus: missing )"),
    ("tagfocus=endpoint=[", "tagfocus: missing ]"),
    ("ignore=" + "x" * 1001, "ignore: longer than 1000 characters"),
    ("hide=(?!x)", "hide: unsupported group"),
    ("focus=" + "&focus=".join("abcdefghi"), "focus: allowed 8 times"),
    ("tagroot=a,b,c,d,e,f,g,h,i", "tagroot: allowed 8 keys"),
    ("format=svg", "format: allowed pprof, folded, speedscope, json"),
    ("top=0", "top: allowed 1 to 1000"),
    ("top=x", "top: allowed 1 to 1000"),
    ("top=1001", "top: allowed 1 to 1000"),
    ("top=3&format=folded", "format with top: allowed json"),
    ("sort=name", "sort: allowed flat, cum"),
    ("base=1-abc", "base: no such capture"),
    ("base=../x", "base: no such capture"),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("query", "why"), BAD, ids=lambda text: text[:20])
def test_bad_parameters_are_refused_before_anything_is_collected(
    site: Site, path: str, query: str, why: str
) -> None:
    """On every profile, at once, with the reason in one line."""
    began_s = time.monotonic()
    answer = site.get(path, f"seconds=30&{query}")

    assert answer.status == 400
    assert answer.headers["X-Go-Pprof"] == "1"
    assert answer.body.decode().startswith(why)
    assert answer.body.count(b"\n") == 1
    assert time.monotonic() - began_s < 5


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("debug=1&format=json", "debug is a format"),
        ("debug=1&top=3", "debug is a format"),
        ("debug=2&focus=x", "debug=2 shows all"),
        ("sample_index=nothing&top=3", "sample_index: allowed contentions, delay"),
        ("sample_index=2&format=json", "sample_index: allowed contentions, delay"),
    ],
)
def test_parameters_that_do_not_go_together_are_refused(
    site: Site, query: str, why: str
) -> None:
    """And a value that the profile has not."""
    answer = site.get("/pprof/mutex", query)

    assert (answer.status, answer.body.decode().startswith(why)) == (400, True)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/pprof/goroutine", b"base: a goroutine is no mutex\n"),
        ("/pprof/block", b"base: a block is no mutex\n"),
    ],
)
def test_a_base_has_to_count_the_same(site: Site, path: str, said: bytes) -> None:
    """A capture of another kind of profile, even one of the same units, is no base."""
    other = site.get(path).headers[HEADER]
    answer = site.mutex(base=other)

    assert (answer.status, answer.body) == (400, said)


@pytest.mark.parametrize(("first", "then"), [("heap", "allocs"), ("allocs", "heap")])
def test_heap_and_allocs_count_the_same(site: Site, first: str, then: str) -> None:
    """They are one profile, shown by what is in use or by all there was."""
    base = site.get(f"/pprof/{first}").headers[HEADER]

    assert site.get(f"/pprof/{then}", f"base={base}").status == 200


def test_a_pattern_too_costly_for_the_names_is_refused(site: Site) -> None:
    """What a pattern may cost is bounded; the answer says so."""
    frames = [Frame("a.py", "ab" * 500 + str(number), 1, 1) for number in range(2000)]
    site.now = replace(WHOLE, samples=[Sample((frame,), (1, 1)) for frame in frames])
    answer = site.mutex(focus="(a|b|.)*a(a|b){60}(a|b|c){60}z.*(a|b){60}y")

    assert answer.status in (200, 400)
    if answer.status == 400:
        assert b"too costly" in answer.body


@pytest.mark.parametrize("path", PATHS)
def test_every_profile_takes_every_option(site: Site, path: str) -> None:
    """The empty ones, too; what they answer is a valid profile."""
    query = "&".join(f"{name}=x" for name in OPTIONS)
    answer = site.get(path, f"seconds=0.1&{query}")

    assert answer.status == 200, answer.body
    check(answer.body, is_delta=True)
    route = next(route for route in ROUTES if path in route.paths)
    assert set(OPTIONS) <= set(route.actions["GET"].parameters)


def test_an_endpoints_profile_of_the_running_process_is_sliced(ask: Ask) -> None:
    """A goroutine profile by kind of thing, without anything made up."""
    app = Site(ask)
    answer = app.get(
        "/pprof/goroutine", "tagfocus=kind=thread&tagshow=kind&format=json"
    )
    found = json.loads(answer.body)

    assert found["total"] >= 1
    assert "sliced: tagfocus=kind=thread" in found["comments"]


class Gaps:
    """Stands for a breath; the CPU time between two of them is what others may wait."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._since_s, self.longest_s = time.thread_time(), 0.0

    def __call__(self) -> None:
        now_s = time.thread_time()
        self.longest_s = max(self.longest_s, now_s - self._since_s)
        self._since_s = time.thread_time()


@pytest.mark.slow
@pytest.mark.parametrize(
    "query",
    [
        {"tagfocus": "endpoint=/1", "focus": "f1", "format": "json"},
        {"tagignore": "endpoint=/1", "format": "speedscope"},
        {"tagshow": "endpoint", "format": "folded"},
        {"hide": "f1", "top": "10"},
    ],
    ids=lambda query: "&".join(query),
)
def test_fifty_thousand_samples_hold_the_gil_for_moments(
    monkeypatch: pytest.MonkeyPatch, query: dict[str, str]
) -> None:
    """Nowhere on the way 5 ms of work between two chances to give it up."""
    many = columns(
        [
            Sample(
                (
                    Frame("a.py", f"f{at % 997}", 1, 1),
                    Frame("b.py", f"g{at % 89}", 1, 1),
                ),
                (1, at + 1),
                (("endpoint", f"/{at % 300}"), ("n", str(at))),
            )
            for at in range(50_000)
        ],
        2,
    )
    monkeypatch.setattr(
        profiles, "COLLECTORS", {"mutex": lambda *_: replace(WHOLE, samples=many)}
    )
    cut, longest_s = slicing._part, list[float]()

    def part(whole: Response, wanted: slicing.Wanted) -> Response:
        gaps = cast("Gaps", wanted.breathe)
        gaps.restart()
        made = cut(whole, wanted)
        gaps()
        longest_s.append(gaps.longest_s)
        return made

    monkeypatch.setattr(slicing, "Breath", Gaps)
    monkeypatch.setattr(slicing, "_part", part)
    site = Site(ask_asgi)
    for _ in range(3):
        assert site.mutex(**query).status == 200

    assert min(longest_s) < 0.005


def test_a_query_of_too_many_parameters_is_refused(ask: Ask) -> None:
    """With a token 414, without one 401; never a failure of the application."""
    query = "&".join(f"a{number}=1" for number in range(200))

    assert ask(f"/debug/pprof/heap?{query}").status == 401
    assert ask(f"/debug/pprof/heap?{query}", bearer(token())).status == 414
