"""What each endpoint answers, and the one table that routes and lists them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from stroboscope._core import Window, engine
from stroboscope._http.messages import HTML, JSON, PROFILE, Request, Response, refusal
from stroboscope._http.parameters import profile_seconds
from stroboscope.errors import EngineUnavailable, WindowsExhausted
from stroboscope.formats.pprof import encode, prune
from stroboscope.labels import TABLE
from stroboscope.profiles.breath import Breath
from stroboscope.profiles.cpu import collect_cpu
from stroboscope.settings import Settings

BUSY = "Could not enable CPU profiling: cpu profiling already in use"
Handler = Callable[[Request, Settings], Response]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint: the paths below the mount, the scope it needs, who answers."""

    paths: tuple[str, ...]
    scope: str
    handler: Handler
    description: str


def profile(request: Request, settings: Settings) -> Response:
    """A CPU profile in pprof format."""
    seconds, clamped = profile_seconds(request.query, settings.profile_seconds_cap)

    def on_window(window: Window) -> None:
        request.cancellation.on_cancel(window.cancel)

    try:
        collected = collect_cpu(seconds, settings, on_window)
    except WindowsExhausted as error:
        wait = (("Retry-After", str(error.retry_after_s)),)
        return refusal(request, 429, BUSY, wait)
    except EngineUnavailable as error:
        return refusal(request, 503, f"Could not enable CPU profiling: {error}")
    headers = [("Content-Disposition", 'attachment; filename="profile"')]
    if clamped:
        headers.append(("X-Stroboscope-Clamped", f"seconds={seconds:g}"))
    breathe = Breath()
    body = encode(prune(collected, breathe=breathe), breathe)
    return Response(200, body, PROFILE, tuple(headers))


def labels(request: Request, settings: Settings) -> Response:
    """The label sets alive now, and what the caps refused."""
    del request, settings
    stats = TABLE.stats()
    body = {
        "alive": stats.alive,
        "cap": stats.cap,
        "made": stats.made,
        "overflowed": stats.overflowed,
        "truncated": stats.truncated,
        "failed": stats.failed,
        "sets": [dict(labels.items) for labels in stats.sets],
    }
    return Response(200, json.dumps(body, indent=1).encode() + b"\n", JSON)


def index(request: Request, settings: Settings) -> Response:
    """What is here; JSON on request."""
    rows = [(settings.prefix + r.paths[0], r.scope, r.description) for r in ROUTES]
    info = engine.info()
    if JSON in (request.header("accept") or ""):
        body = {
            "engine": info.kind,
            "windows": info.windows,
            "endpoints": [
                {"path": path, "scope": scope, "description": text}
                for path, scope, text in rows
            ],
        }
        return Response(200, json.dumps(body, indent=1).encode() + b"\n", JSON)
    items = "".join(
        f'<tr><td><a href="{escape(path)}">{escape(path)}</a></td>'
        f"<td>{escape(scope)}</td><td>{escape(text)}</td></tr>"
        for path, scope, text in rows
    )
    page = (
        "<!doctype html><title>stroboscope</title><h1>stroboscope</h1>"
        f"<p>Engine: {escape(info.kind)}, {info.windows} windows open.</p>"
        f"<table><tr><th>path</th><th>scope</th><th>what</th></tr>{items}</table>"
    )
    return Response(200, page.encode(), HTML)


def pprof_index(request: Request, settings: Settings) -> Response:
    """Go's index page of profiles."""
    del request
    root = escape(settings.prefix) + "/pprof/"
    page = (
        "<!doctype html><title>pprof</title><p>Types of profiles available:</p>"
        f'<table><tr><td><a href="{root}profile?seconds=30">profile</a></td>'
        "<td>CPU time by stack and label</td></tr></table>"
    )
    return Response(200, page.encode(), HTML)


ROUTES = (
    Route(("/", ""), "metrics", index, "This page."),
    Route(("/pprof/", "/pprof"), "profile", pprof_index, "Profiles, as in Go."),
    Route(
        ("/pprof/profile",),
        "profile",
        profile,
        "CPU profile in pprof format; ?seconds=30.",
    ),
    Route(("/labels",), "metrics", labels, "Label sets and what their caps refused."),
)
