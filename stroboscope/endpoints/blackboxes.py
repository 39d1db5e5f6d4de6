"""What killed processes of this service left: found, told once in the log, kept."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from stroboscope._http.messages import PROFILE, Response
from stroboscope.endpoints.captures import Capture
from stroboscope.errors import FolderError
from stroboscope.formats import perfetto
from stroboscope.formats.timeline import ALIVE, OPEN_RIGHT, Timeline
from stroboscope.tracing.blackbox import take_dead

if TYPE_CHECKING:
    from stroboscope.endpoints.desk import Desk

_log = logging.getLogger("stroboscope")
KIND = "blackbox"
#: A day: who is woken at night looks in the morning.
AGE_S = 86_400.0
#: Tasks named in the reason and in the log.
_NAMED = 8


def adopt_dead(desk: Desk) -> int:
    """Keep the black boxes of killed processes as captures; how many. Blocks."""
    if desk.members is None:
        return 0
    adopted = 0
    try:
        for dead in take_dead(desk.members.folder):
            reason = f"process {dead.pid} was killed{at_work(dead.timeline)}"
            _log.error("stroboscope: %s", reason)
            body = perfetto.encode(dead.timeline, [("ended", reason)])
            named = ("Content-Disposition", 'attachment; filename="trace"')
            capture = Capture(
                desk.captures.new_id(),
                KIND,
                "/trace",
                Response(200, body, PROFILE, (named,)),
                scope="trace",
                parameters={"pid": str(dead.pid)},
                reason=reason,
                is_held=True,
            )
            adopted += desk.captures.keep(capture, AGE_S)
    except FolderError as error:
        _log.warning("stroboscope: black boxes cannot be read: %s", error)
    return adopted


def at_work(line: Timeline) -> str:
    """The tasks that were alive, with the region each was in: ` while at ...`."""
    alive = [task for task in line.tasks() if task.flags & ALIVE]
    told = []
    for task in alive[:_NAMED]:
        inside = [s for s in line.regions_of(task) if s.flags & OPEN_RIGHT]
        name = line.name(task.name) or line.name(task.kind)
        if inside:
            latest = max(inside, key=lambda span: span.begin_ns)
            name += f" in {line.name(latest.name)}"
        told.append(f"{name} ({(line.to_ns - task.begin_ns) / 1e9:.3f} s)")
    if len(alive) > _NAMED:
        told.append(f"{len(alive) - _NAMED} more")
    return " while at " + ", ".join(told) if told else ""
