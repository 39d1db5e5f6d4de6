"""`Accept` chooses between the forms an endpoint has; where there is none it is 406."""

import gc
import json

import pytest
from asking import Ask, admin, bearer, request, token

from stroboscope._http.accepting import choose
from stroboscope._http.messages import HTML, JSON, TEXT
from stroboscope.endpoints.routes import ROUTES

#: Every method of every path that can be asked without an id, and what it answers in.
FORMS = [
    (method, path, action.kinds)
    for route in ROUTES
    for path in route.paths
    for method, action in route.actions.items()
    if "{" not in path
]
CHOOSING = [one for one in FORMS if one[2]]
#: Bodies that would change something.
BODIES = {
    "/settings": b'{"cpu_hz": 50, "ttl": "1m"}',
    "/share": b'{"path": "/stacks"}',
    "/revoke": b'{"id": "nobody"}',
}


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, TEXT),
        ("", TEXT),
        ("*/*", TEXT),
        ("*", TEXT),
        ("text/*", TEXT),
        ("application/json", JSON),
        ("Application/JSON;charset=utf-8", JSON),
        ("application/*", JSON),
        ("application/json, text/plain, */*", JSON),
        ("text/plain, application/json", TEXT),
        ("text/plain;q=0.2, application/json;q=.9", JSON),
        ("text/html,application/xhtml+xml,*/*;q=0.8", TEXT),
        ("text/html, image/gif, *; q=.2, */*; q=.2", TEXT),
        ("application/json;q=0, */*", TEXT),
        ("application/json;q=0.000, text/*", TEXT),
        ("text/plain;q=0, */*;q=0.1", JSON),
        ("application/problem+json", JSON),
        ("application/problem+json, text/plain", TEXT),
        (",,application/json,", JSON),
        ("application/json;q=much", JSON),
        ("application/json;q=0", None),
        ("*/*;q=0", None),
        ("text/html", None),
        ("application/xml;q=0.9, text/csv", None),
        ("json", None),
        ("application/json " * 3, None),
        ("a/b," * 40 + "application/json", None),
    ],
)
def test_the_best_form_is_chosen(accept: str | None, chosen: str | None) -> None:
    """As RFC 9110 has it: by quality, then by how closely it is named, then in order."""
    named = () if accept is None else (("accept", accept),)

    assert choose(request("/", *named), (TEXT, JSON)) == chosen


def test_a_header_in_several_lines_is_one_list() -> None:
    """RFC 9110, section 5.3."""
    several = (("accept", "text/csv"), ("accept", "application/json"))

    assert choose(request("/", *several), (HTML, JSON)) == JSON


@pytest.mark.parametrize(("method", "path", "kinds"), CHOOSING)
def test_a_form_there_is_not_is_406_before_anything_is_done(
    ask: Ask, method: str, path: str, kinds: tuple[str, ...]
) -> None:
    """One line that names those there are; nothing was switched, made or collected."""
    collections = []
    gc.disable()  # only who asks for one collects
    gc.callbacks.append(lambda phase, info: collections.append(info["generation"]))
    headers = admin() | {"Accept": "application/xml"}
    try:
        answer = ask("/debug" + path, headers, method, body=BODIES.get(path, b""))
    finally:
        gc.callbacks.pop()
        gc.enable()

    named = ", ".join(kind.partition(";")[0] for kind in kinds)
    assert answer.status == 406
    assert answer.body.decode() == f"this answers {named}\n"
    assert answer.headers["X-Go-Pprof"] == "1"
    assert path != "/gc" or 2 not in collections
    strange = ask("/debug" + path, {"Accept": "application/xml"}, method)
    assert strange.status == 401


@pytest.mark.parametrize(
    ("path", "kind"),
    [(path, k) for method, path, ks in CHOOSING for k in ks if method == "GET"],
)
def test_every_form_can_be_had(ask: Ask, path: str, kind: str) -> None:
    """Asked for by name, it is what comes."""
    name = kind.partition(";")[0]
    headers = bearer(token("admin")) | {"Accept": f"text/csv, {name}"}
    answer = ask("/debug" + path, headers)

    assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
    assert kind != JSON or json.loads(answer.body) is not None


@pytest.mark.parametrize(
    "path", [path for method, path, kinds in FORMS if method == "GET" and not kinds]
)
def test_gos_urls_and_metrics_have_one_form(ask: Ask, path: str) -> None:
    """Whatever `Accept` says: no scraper is refused for it."""
    headers = bearer(token("admin")) | {"Accept": "application/xml"}
    answer = ask(f"/debug{path}?seconds=0.05", headers)

    assert answer.status in (200, 404 if path == "/pprof/cmdline" else 200)


def test_406_says_why_in_the_form_of_problems(ask: Ask) -> None:
    """To who asks for that by name."""
    accept = "application/problem+json, application/json;q=0"
    answer = ask("/debug/labels", bearer(token("metrics")) | {"Accept": accept})

    assert answer.status == 406
    assert json.loads(answer.body)["status"] == 406
    assert answer.headers["Content-Type"] == "application/problem+json"
