"""What killed processes of this service left: found, told once in the log, kept on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stroboscope._greenlets import Log
from stroboscope.errors import FolderError
from stroboscope.formats.timeline import ALIVE, OPEN_RIGHT, Task, Timeline
from stroboscope.tracing.blackbox import Dead, take_dead

if TYPE_CHECKING:
    from stroboscope.endpoints.desk import Desk

_log = Log("stroboscope")
#: Tasks named in the reason and in the log; and those whose ids lead to the piece.
_NAMED, _FOUND_BY = 8, 256


def adopt_dead(desk: Desk) -> int:
    """Keep the black boxes of killed processes as evidence; how many. Blocks."""
    if desk.members is None:
        return 0
    adopted = 0
    try:
        for dead in take_dead(desk.members.folder):
            about = _about(dead.pid, dead.timeline)
            _log.error("stroboscope: %s", about["reason"])
            adopted += _is_kept(desk, dead, about)
    except FolderError as error:
        _log.warning("stroboscope: black boxes cannot be read: %s", error)
    return adopted


def _is_kept(desk: Desk, dead: Dead, about: dict[str, Any]) -> bool:
    evidence = desk.evidence
    why = evidence.adopt(dead.id, about, dead.timeline.block)
    if why == "disk":
        dead.remove()  # its place may be the place that is missing
        why = evidence.adopt(dead.id, about, dead.timeline.block)
    if why:
        evidence.say(why, str(about["reason"]))
    return not why


def _about(pid: int, line: Timeline) -> dict[str, Any]:
    alive = [task for task in line.tasks() if task.flags & ALIVE]
    return {
        "reason": f"process {pid} was killed{at_work(line)}",
        "pid": pid,
        "tasks": [task.serial for task in alive[:_FOUND_BY]],
        "traces": sorted(set(_ids(alive[:_FOUND_BY]))),
    }


def _ids(tasks: list[Task]) -> list[str]:
    found = [one for task in tasks for one in (task.trace_id, task.span_id)]
    return [one.hex() for one in found if any(one)]


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
