"""Pages for people, and the machine's description of the surface."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any
from urllib.parse import urlencode

from stroboscope._core import engine
from stroboscope._http.messages import HTML, JSON, POLICY, Response, refusal
from stroboscope._http.parameters import first
from stroboscope.endpoints import exhibits, joining
from stroboscope.endpoints.call import Call, as_json
from stroboscope.errors import FolderError

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;"
    "padding:0 1rem;color:#1b1f24;background:#fff}"
    "h1{font-size:1.5rem;margin:0}h2{font-size:1.05rem;margin:2rem 0 .5rem}"
    "table{border-collapse:collapse;width:100%}"
    "th,td{text-align:left;padding:.35rem .75rem .35rem 0;"
    "border-bottom:1px solid #e3e6ea;vertical-align:top}"
    "th{font-weight:600;color:#57606a}code,a{font-family:ui-monospace,monospace;"
    "font-size:.9em;overflow-wrap:anywhere}p{margin:.25rem 0 1rem;color:#57606a}"
    "@media(max-width:40rem){th{display:none}"  # a row becomes a paragraph
    "tr{display:block;padding:.35rem 0;border-bottom:1px solid #e3e6ea}"
    "td{display:inline-block;border:0;padding:0 .75rem 0 0}"
    "td:last-child{display:block}}"
    "@media(prefers-color-scheme:dark){body{color:#e6e8eb;background:#15181c}"
    "th,p{color:#9aa4af}th,td,tr{border-color:#2c3238}a{color:#79b8ff}}"
)
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = f"{POLICY}; style-src 'sha256-{_HASH}'"


def index(call: Call) -> Response:
    """What is here, what runs now, who holds a lease, the knobs; JSON on request."""
    from stroboscope.endpoints.routes import ROUTES  # the table lists this page

    wanted = first(call.request.query, "worker") or ""
    if wanted and wanted != str(call.desk.process):
        answer = joining.forward(call, "/", wanted)
        return answer or refusal(call.request, 404, "Unknown worker")
    desk, info = call.desk, engine.info()
    held = desk.leases.current()
    knobs = desk.knobs.describe()
    if call.kind == JSON:
        return as_json(
            {
                "process": os.getpid(),
                "engine": info.kind,
                "windows": info.windows,
                "lease": held and {"kind": held[0], "ends_in": round(held[1], 1)},
                "settings": knobs,
                "captures": len(desk.captures),
                "endpoints": [
                    {
                        "path": call.mount + route.paths[0],
                        "method": method,
                        "scope": action.scope,
                        "description": action.description,
                    }
                    for route in ROUTES
                    for method, action in route.actions.items()
                ],
            }
        )
    kept = [exhibits.described(one, call) for one in exhibits.kept_here(call)]
    now = [
        ("engine", f"{info.kind}: {info.reason}"),
        ("windows that sample", str(info.windows)),
        ("lease", f"{held[0]}, {held[1]:.0f} s left" if held else "free"),
        ("own CPU", f"{100 * desk.governor.last:.2f} % of one"),
    ]
    endpoints = [
        (
            _link(call.mount + route.paths[0], method),
            escape(method),
            escape(action.scope),
            escape(action.description),
        )
        for route in ROUTES
        for method, action in route.actions.items()
    ]
    switched = [
        (
            f"<code>{escape(name)}</code>",
            f"<code>{escape(str(knob['value']))}</code>",
            _until(knob),
            escape(knob["description"]),
        )
        for name, knob in knobs.items()
    ]
    return page(
        "stroboscope",
        f"<p>service {escape(desk.settings.service)}, {_whose(call)}</p>",
        "<h2>Now, in this process</h2>",
        table((), [(escape(a), escape(b)) for a, b in now]),
        "<h2>Endpoints</h2>",
        table(("path", "method", "scope", "what"), endpoints),
        "<h2>Settings</h2>",
        table(("name", "value", "until", "what"), switched),
        "<h2>Captures of this process</h2>",
        f'<p><a href="{escape(call.mount)}/captures">of all workers</a></p>',
        captures_table(kept, call.mount),
    )


def _whose(call: Call) -> str:
    """Which process this page is of, with links to the others'."""
    members = call.desk.members
    try:
        others = members.processes() if members is not None else []
    except FolderError:
        others = []
    links = [
        f'<a href="{escape(call.mount)}/?worker={pid}">{pid}</a>'
        for pid in others
        if pid != call.desk.process
    ]
    name = "worker" if call.desk.is_worker else "sidecar"
    also = f"; the page of worker {', '.join(links)}" if links else ""
    return f"{name} {os.getpid()}{also}"


def pprof_index(call: Call) -> Response:
    """Go's index page of profiles."""
    from stroboscope.endpoints.routes import ROUTES

    mount = call.mount
    rows = [
        (
            f'<a href="{escape(mount + r.paths[0])}{_hint(r.actions["GET"].parameters)}">'
            f"{escape(r.paths[0].removeprefix('/pprof/'))}</a>",
            escape(r.description),
        )
        for r in ROUTES
        if r.paths[0].startswith("/pprof/") and r.paths[0] != "/pprof/"
    ]
    said = "<p>Types of profiles available:</p>"
    return page(f"{mount}/pprof/", said, table((), rows))


def openapi(call: Call) -> Response:
    """The surface in OpenAPI 3.1, drawn from the same table."""
    from stroboscope.endpoints.routes import ROUTES

    paths = {
        call.mount + route.paths[0]: {
            method.lower(): _operation(route.paths[0], method, action)
            for method, action in route.actions.items()
        }
        for route in ROUTES
    }
    return as_json(
        {
            "openapi": "3.1.0",
            "info": {"title": "stroboscope", "version": "1"},
            "components": {
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "basic": {"type": "http", "scheme": "basic"},
                }
            },
            "security": [{"bearer": []}, {"basic": []}],
            "paths": paths,
        }
    )


#: Every status an endpoint may answer with, besides its success.
_STATUSES = {
    400: "a parameter, or the Host header",
    401: "no valid token",
    403: "the scope is missing, or another site asks",
    404: "unknown, or switched off",
    405: "another method; see Allow",
    406: "Accept names no form there is",
    408: "the client was too slow",
    409: "settings changed meanwhile",
    413: "the body is too large",
    414: "the query is too long",
    415: "the body is not JSON",
    429: "busy, or too many failures; see Retry-After",
    500: "a failure of ours, by number",
    501: "not in this version",
    503: "the sampler cannot run",
}


def _operation(path: str, method: str, action: Any) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": action.description,
        "description": f"Scope: {action.scope}.",
        "responses": {
            "200": {"description": "as described"},
            **{str(code): {"description": text} for code, text in _STATUSES.items()},
        },
    }
    text = {"schema": {"type": "string"}}
    described["parameters"] = [
        {"name": name, "in": "path", "required": True, **text}
        for name in re.findall(r"{(\w+)}", path)
    ]
    if method == "GET":
        described["parameters"] += [
            {"name": n, "in": "query", "description": t, **text}
            for n, t in action.parameters.items()
        ]
    elif action.parameters:
        members = {n: {"description": t} for n, t in action.parameters.items()}
        schema = {"type": "object", "properties": members}
        described["requestBody"] = {"content": {JSON: {"schema": schema}}}
        described["responses"]["201"] = {"description": "made"}
    return described


def page(title: str, *parts: str) -> Response:
    """A page of ours; the parts are HTML already."""
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1>{''.join(parts)}</html>"
    )
    return Response(200, text.encode(), HTML, policy=_POLICY)


def captures_table(captures: Iterable[Mapping[str, Any]], mount: str) -> str:
    """Kept answers, as JSON lists them, each a link."""
    heads = ("taken", "kind", "of", "bytes", "by", "why", "worker")
    rows = [
        (
            f'<a href="{escape(mount)}/captures/{escape(str(one.get("id")))}">'
            f"{_time(one.get('taken'))} UTC</a>",
            escape(str(one.get("kind", ""))),
            f"<code>{escape(_asked(one))}</code>",
            escape(str(one.get("bytes", ""))),
            escape(str(one.get("token_id", ""))),
            escape(str(one.get("reason", ""))),
            escape(str(one.get("pid", ""))),
        )
        for one in captures
    ]
    return table(heads, rows) if rows else "<p>none</p>"


def share_said(answer: Response) -> str:
    """How many workers are in a joined answer, where there are several, and who is not."""
    headers = dict(answer.headers)
    share = headers.get(joining.HEADER, "")
    if not share:
        return ""
    missing = headers.get(joining.MISSING, "")
    said = f"workers {share}" + (f": {missing}" if missing else "")
    return f"<p>{escape(said)}</p>"


def _time(taken_s: object) -> str:
    try:
        return f"{datetime.fromtimestamp(float(str(taken_s)), UTC):%H:%M:%S}"
    except (ValueError, OverflowError, OSError):  # another version's
        return "?"


def _asked(one: Mapping[str, Any]) -> str:
    parameters = one.get("parameters")
    query = urlencode(parameters) if isinstance(parameters, dict) else ""
    return str(one.get("endpoint", "")) + (f"?{query}" if query else "")


def table(heads: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    """Cells are HTML already."""
    head = "".join(f"<th>{escape(one)}</th>" for one in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"


def _link(path: str, method: str) -> str:
    shown = f"<code>{escape(path)}</code>"
    is_linked = method == "GET" and "{" not in path
    return f'<a href="{escape(path)}">{escape(path)}</a>' if is_linked else shown


def _hint(parameters: Collection[str]) -> str:
    return "?debug=1" if "debug" in parameters else ""


def _until(knob: dict[str, Any]) -> str:
    if not knob["overridden"]:
        return "baseline"
    left = knob["expires_in"]
    return "changed again" if left is None else f"{left:.0f} s"
