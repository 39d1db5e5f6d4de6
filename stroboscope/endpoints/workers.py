"""Who the workers of this service are."""

from __future__ import annotations

import contextvars
import functools
import importlib.metadata
import os
import platform
import sys
import time
from typing import Any

from stroboscope._core import engine
from stroboscope._http.messages import Response
from stroboscope._http.parameters import first
from stroboscope.endpoints.call import Call, as_json
from stroboscope.endpoints.joining import HEADER, ask_all
from stroboscope.endpoints.parts import OTHER_SHAPE, read_object
from stroboscope.errors import FolderError

#: How long a loop may take to show how late it is.
_LAG_CAP_S = 0.1
#: Modules that only a worker of the server has loaded, most telling first.
_SERVERS = (
    ("gunicorn.workers.sync", "gunicorn sync"),
    ("gunicorn.workers.ggevent", "gunicorn gevent"),
    ("gunicorn.workers.gthread", "gunicorn gthread"),
    ("uvicorn.workers", "gunicorn uvicorn"),
    ("gunicorn.arbiter", "gunicorn"),
    ("uvicorn.server", "uvicorn"),
    ("hypercorn", "hypercorn"),
    ("uwsgi", "uwsgi"),
    ("waitress.server", "waitress"),
)


def show_workers(call: Call) -> Response:
    """Every worker with its age, server, engine and memory; who did not answer, too."""
    own = [_facts(call)] if call.desk.is_worker else []
    if call.is_peer:
        return as_json(own[0])
    good, failed = ask_all(call, "/workers")
    read = {part.process: read_object(part) for part in good}
    came = [{**one, "pid": pid} for pid, one in read.items() if one is not None]
    listed = own + came
    listed += [
        {"pid": pid, "failure": OTHER_SHAPE} for pid, one in read.items() if one is None
    ]
    listed += [
        {"pid": one.process, "failure": one.failure or f"answered {one.status}"}
        for one in failed
    ]
    listed.sort(key=lambda worker: int(worker["pid"]))
    answer = as_json({"service": call.desk.settings.service, "workers": listed})
    members = call.desk.members
    is_known = members is None or not members.failure
    count = f"{len(own) + len(came)}/{len(listed) if is_known else '?'}"
    headers = ((HEADER, count),)
    return Response(200, answer.body, answer.content_type, headers)


def targets(call: Call) -> Response:
    """The asked address as a target for all workers, or with `by=worker` for each.

    Source: Prometheus, HTTP SD: a list of groups of `targets` with `labels`; a label
    `__param_NAME` becomes a query parameter of each scrape. Parca and Alloy read the same.
    """
    address = call.request.header("host") or ""
    labels = {
        "__metrics_path__": f"{call.mount}/metrics",
        "service": call.desk.settings.service,
    }
    if first(call.request.query, "by") != "worker":
        return as_json([{"targets": [address], "labels": labels}])
    own = [call.desk.process] if call.desk.is_worker else []
    try:
        found = call.desk.members.processes() if call.desk.members else []
    except FolderError:
        found = []
    return as_json(
        [
            {
                "targets": [address],
                "labels": {**labels, "pid": str(pid), "__param_worker": str(pid)},
            }
            for pid in sorted({*own, *found})
        ]
    )


def _facts(call: Call) -> dict[str, Any]:
    info = engine.info()
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "age_s": round(_age_s(), 1),
        "server": _server(),
        "python": platform.python_version(),
        "engine": info.kind,
        "windows": info.windows,
        "lag_ms": _lag_ms(call),
        "rss_bytes": _resident_bytes(),
        "requests": sum(one.running() for one in call.desk.labellers),
        "version": _version(),
        "socket": call.desk.doors.socket_failure or "open",
        "admin": call.desk.doors.admin_failure or "open",
    }


@functools.cache
def _version() -> str:
    try:
        return importlib.metadata.version("stroboscope")
    except importlib.metadata.PackageNotFoundError:  # not installed, only on the path
        return ""


def _lag_ms(call: Call) -> float | None:
    """How late the slowest event loop runs what it is given, or None without a loop.

    At least so late, where it did not run it in `_LAG_CAP_S`.
    """
    began_s = time.monotonic()
    waiting = set()
    for loop in call.desk.loops():
        waiting.add(loop)
        try:
            loop.call_soon_threadsafe(
                waiting.discard, loop, context=contextvars.Context()
            )
        except RuntimeError:  # closed
            waiting.discard(loop)
    has_loops = bool(waiting)
    while waiting and time.monotonic() < began_s + _LAG_CAP_S:
        engine.sleep(0.001)
    return round((time.monotonic() - began_s) * 1000, 1) if has_loops else None


def _server() -> str:
    return next((name for module, name in _SERVERS if module in sys.modules), "")


def _age_s() -> float:
    """Source: proc(5): field 22 of `stat` is the start in ticks after boot."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
