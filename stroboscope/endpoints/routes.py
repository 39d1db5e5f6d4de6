"""The one table: it routes, and it draws the index page and the description."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from stroboscope._http.messages import HTML, JSON, TEXT
from stroboscope.endpoints import (
    listing,
    pages,
    profiles,
    sharing,
    slicing,
    stalls,
    state,
    tasks,
    tasktypes,
    traces,
    workers,
)
from stroboscope.endpoints.call import Action, Call, Handler, Route

_ONE = {"worker": "the process id of another one"}
_WORKERS = {
    "worker": "all, or the process id of one",
    "merge": "flat: without the label pid",
}
_SECONDS = {"seconds": "how long; clamped to the cap"}
_TRACE = {**_SECONDS, "format": "perfetto (default), or json for Chrome's form"}
_DELTA = {
    "seconds": "the difference over so long, instead of the total",
    "debug": "1: text for people; 2: a block per stack",
}
_AGE = {"min_age": "only what is known to be so many seconds old"}
_GC = {"gc": "1: collect first, once in 10 s"}
#: What else than its one form an endpoint answers in, the usual one first.
_DATA, _TOLD, _SHOWN, _LISTED = (JSON,), (TEXT, JSON), (HTML, JSON), (JSON, HTML)
_MORE = {"allocs": _GC, "goroutine": _AGE, "heap": _GC}


def _at_once(call: Call) -> float:
    return 0.0


def _get(
    path: str,
    scope: str,
    handler: Handler,
    description: str,
    parameters: Mapping[str, str] | None = None,
    *,
    joined: Callable[[Call], float] | None = None,
    of_one: Callable[[Call], float] | None = None,
    is_sliced: bool = False,
    kinds: tuple[str, ...] = (),
    **other: Action,
) -> Route:
    """A route with a GET; a path that ends in a slash is served without it, too."""
    paths = (path, path[:-1]) if path.endswith("/") else (path,)
    named = {**(parameters or {}), **(_WORKERS if joined else {})}
    if is_sliced:
        named |= slicing.PARAMETERS
    if of_one:
        named |= _ONE
    got = Action(
        scope,
        handler,
        description,
        named,
        joined=joined,
        of_one=of_one,
        is_sliced=is_sliced,
        kinds=kinds,
    )
    return Route(paths, {"GET": got, **other})


ROUTES = (
    _get(
        "/",
        "metrics",
        pages.index,
        "This page; JSON with Accept.",
        _ONE,
        kinds=_SHOWN,
    ),
    _get("/pprof/", "profile", pages.pprof_index, "Profiles, as Go lists them."),
    _get(
        "/pprof/profile",
        "profile",
        profiles.profile,
        "CPU time by stack and label.",
        {
            **_SECONDS,
            "forensic": "1: at the full rate, alone",
            "native": "1: stacks go on into C, alone; 501 with why not",
        },
        joined=profiles.capture_s,
        is_sliced=True,
    ),
    *(
        _get(
            f"/pprof/{name}",
            "profile",
            profiles.snapshot(name),
            f"Go's {name} profile.",
            _DELTA | _MORE.get(name, {}),
            joined=profiles.delta_s,
            is_sliced=True,
        )
        for name in profiles.NAMES
    ),
    *(
        _get(
            path,
            "profile",
            profiles.wall,
            description,
            _SECONDS,
            joined=profiles.capture_s,
            is_sliced=True,
        )
        for path, description in (
            ("/pprof/wall", "Time on and off CPU."),
            ("/fgprof", "The same, where fgprof is."),
        )
    ),
    _get(
        "/trace",
        "trace",
        traces.trace,
        "An execution trace, one at a time.",
        _TRACE,
        of_one=traces.capture_s,
    ),
    _get(
        "/tasks",
        "trace",
        tasktypes.show_tasks,
        "Requests and tasks: how long, and where it went.",
        {
            "seconds": "with CPU and waiting, of so many seconds from now",
            "worker": _WORKERS["worker"],
        },
        kinds=_LISTED,
    ),
    _get(
        "/tasks/{id}",
        "trace",
        tasks.show_task,
        "The timeline of one, by trace id, span id or number.",
        {"format": "perfetto, or json for Chrome's form; a page or JSON without"},
        kinds=_LISTED,
    ),
    _get(
        "/pprof/trace",
        "trace",
        traces.trace,
        "The same, at Go's URL.",
        _TRACE,
        of_one=traces.capture_s,
    ),
    _get(
        "/pprof/cmdline",
        "profile",
        profiles.cmdline,
        "The program's name, if shown.",
        of_one=_at_once,
    ),
    _get(
        "/pprof/symbol",
        "profile",
        profiles.symbol,
        "Names of addresses: 0xADDR+0xADDR.",
        POST=Action("profile", profiles.symbol, "The same from a body.", {}, "text"),
    ),
    _get(
        "/captures",
        "profile",
        listing.show_captures,
        "Profiles that are kept.",
        {"worker": _WORKERS["worker"]},
        kinds=_LISTED,
    ),
    _get(
        "/captures/{id}",
        "profile",
        listing.give,
        "One of them, as it was answered, or a part of it.",
        is_sliced=True,
        DELETE=Action(
            "profile", listing.drop, "Forget one of your own.", {}, kinds=_DATA
        ),
    ),
    _get(
        "/stacks",
        "profile",
        state.show_stacks,
        "Every thread and task now.",
        {**_AGE, "native": "1 (admin): with C frames, from py-spy; stops the process"},
        joined=_at_once,
        kinds=_TOLD,
    ),
    *(
        _get(path, scope, handler, description, joined=_at_once, kinds=kinds)
        for path, scope, handler, description, kinds in (
            (
                *("/stalls", "profile", stalls.show_stalls),
                *("What blocked loops, threads.", _TOLD),
            ),
            (
                *("/labels", "metrics", state.labels),
                *("Label sets, what caps refused.", _DATA),
            ),
            (
                *("/metrics", "metrics", state.metrics),
                *("Our counters, for Prometheus.", ()),
            ),
        )
    ),
    _get(
        "/workers",
        "metrics",
        workers.show_workers,
        "The workers of this service.",
        kinds=_DATA,
    ),
    _get(
        "/targets",
        "metrics",
        workers.targets,
        "Where to scrape, as Prometheus' HTTP service discovery wants it.",
        {"by": "worker: a target for each, instead of one for all"},
        kinds=_DATA,
    ),
    _get(
        "/gc",
        "metrics",
        state.gc_statistics,
        "The garbage collector's counts.",
        joined=_at_once,
        kinds=_DATA,
        POST=Action(
            "admin",
            state.gc_collect,
            "Collect now, once in 10 s.",
            _ONE,
            of_one=_at_once,
            kinds=_DATA,
        ),
    ),
    _get(
        "/settings",
        "metrics",
        state.settings,
        "Knobs, their baselines and presets.",
        of_one=_at_once,
        kinds=_DATA,
        PUT=Action(
            "admin",
            state.change_settings,
            "Switch knobs for a while.",
            {
                "preset": "production-safe or forensic",
                "ttl": "how long, such as 10m (default 15m, at most 24h), or none",
            },
            "json",
            of_one=_at_once,
            kinds=_DATA,
        ),
    ),
    _get(
        "/selfcheck",
        "metrics",
        state.selfcheck,
        "The doctor's report.",
        joined=_at_once,
        kinds=_DATA,
    ),
    _get(
        "/openapi.json",
        "admin",
        pages.openapi,
        "This surface, described.",
        kinds=_DATA,
    ),
    Route(
        ("/share",),
        {
            "POST": Action(
                "profile",
                sharing.share,
                "Make a link that opens one path for at most 15 minutes.",
                {
                    "path": "below the mount, with its query",
                    "ttl": "such as 10m",
                    "keep": "true: take it now and keep it for the link",
                },
                "json",
                of_one=sharing.share_s,
                kinds=_DATA,
            )
        },
    ),
    Route(
        ("/revoke",),
        {
            "POST": Action(
                "admin",
                state.revoke,
                "Refuse a token or link by id, or all until now.",
                {"id": "of a token or link", "before": "now"},
                "json",
                kinds=_DATA,
            )
        },
    ),
)
BY_PATH = {path: route for route in ROUTES for path in route.paths}
#: What may stand in a path for `{id}`.
_ID = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)


def find(path: str) -> tuple[Route | None, str]:
    """The route of a path below the mount, and what stands there for its `{id}`."""
    folder, _, name = path.rpartition("/")
    found = BY_PATH.get(path)
    if found is not None or not _ID.fullmatch(name):
        return found, ""
    return BY_PATH.get(folder + "/{id}"), name
