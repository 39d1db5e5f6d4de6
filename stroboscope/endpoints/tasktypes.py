"""Tasks by type, and the living ones, of all workers. Blocks for what it reads.

With `seconds` CPU is sampled meanwhile. What is charged to a type is then what happened
within the window of the sampler, its time and its counts as well as its CPU.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import dataclass, field, replace
from typing import Any

from stroboscope._core import Window
from stroboscope._http.messages import HTML, JSON, Response, refusal
from stroboscope._http.parameters import first
from stroboscope.endpoints import joining, taskpages
from stroboscope.endpoints.call import Call, as_json
from stroboscope.endpoints.tasksums import joined
from stroboscope.errors import EngineUnavailable, WindowsExhausted
from stroboscope.formats.timeline import ALIVE, OPEN_RIGHT, Task, Timeline
from stroboscope.profiles.breath import Breath
from stroboscope.profiles.cpu import collect_cpu
from stroboscope.tracing import live, onetask, recorder
from stroboscope.tracing.statistics import BOUNDS_S, TaskType, by_type

PATH = "/tasks"
#: Living tasks that are listed, oldest first, and types; the numbers say how many more.
LIVE_CAP = TYPES_CAP = 200
_NO_CPU = "not known: ask with seconds=, then CPU is sampled meanwhile"


@dataclass(slots=True)
class _Cpu:
    """CPU by method and name of a request's task, as sampled, and when that was."""

    #: From and to, of CLOCK_MONOTONIC.
    from_ns: int = 0
    to_ns: int = 0
    period_s: float = 0.0
    #: Samples, and the seconds they stand for.
    by_type: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict)

    def of(self, method: str, name: str) -> tuple[float, float]:
        """Seconds, and their standard error: at most that of so many chance events."""
        samples, cpu_s = self.by_type.get((method, name), (0, 0.0))
        error_s = self.period_s * math.sqrt(max(1, samples))
        return round(cpu_s, 4), round(error_s, 4)


def seconds_of(call: Call) -> float:
    """For how long CPU is sampled: not at all, unless it is asked for."""
    text = first(call.request.query, "seconds") or "0"
    try:
        wanted = float(text)
    except ValueError:
        return 0.0
    cap_s = call.desk.settings.trace_seconds_cap
    return min(wanted, cap_s) if 0 < wanted < 1e9 else 0.0


def show_tasks(call: Call) -> Response:
    """Every type of task with where its time went, and the living ones."""
    whole = joining.answer(call.for_data(), PATH, _own, seconds_of(call))
    if whole.status != 200 or whole.content_type != JSON or call.is_peer:
        return whole
    told = joined(json.loads(whole.body))
    shown = taskpages.types_page(call, told) if is_page(call) else as_json(told)
    headers = whole.headers
    if "workers" in told:  # some may not have been to be added up
        headers = joining.counted(headers, len(told["workers"]), told["missing"])
    return replace(shown, headers=(*shown.headers, *headers))


def is_page(call: Call) -> bool:
    """Whether a browser asks."""
    return call.kind == HTML


def _own(call: Call) -> Response:
    """What this process knows."""
    try:
        seconds = seconds_of(call)
        cpu = _sampled(call, seconds) if seconds else None
    except WindowsExhausted as error:
        wait = (("Retry-After", str(error.retry_after_s)),)
        return refusal(call.request, 429, "cpu profiling already in use", wait)
    except EngineUnavailable as error:
        return refusal(call.request, 503, str(error))
    return as_json(_statistics(call, seconds, cpu))


def _statistics(call: Call, seconds: float, cpu: _Cpu | None) -> dict[str, Any]:
    breathe = Breath()
    block = recorder.snapshot()
    if block is None:
        return {"pid": os.getpid(), "recorder": None, "types": [], "live": []}
    line = replace(Timeline.read(block), trace_url=call.desk.settings.trace_url)
    from_ns, to_ns = (cpu.from_ns, cpu.to_ns) if cpu else (0, line.to_ns)
    from_ns, to_ns = max(from_ns, line.from_ns), min(to_ns, line.to_ns)
    covered_s = max(to_ns - from_ns, 1) / 1e9
    types = by_type(line, from_ns, to_ns, breathe)
    alive = [task for task in line.tasks() if task.flags & ALIVE]
    return {
        "pid": os.getpid(),
        "recorder": {
            "from": round(line.unix_ns(from_ns) / 1e9, 3),
            "seconds": round(covered_s, 3),
            "events": line.events,
            "lost": line.lost,
            "torn": line.torn,
        },
        "bounds_s": BOUNDS_S,
        "types": [
            _described(call, line, one, covered_s, cpu) for one in types[:TYPES_CAP]
        ],
        "types_left_out": max(0, len(types) - TYPES_CAP),
        "live": _living(call, line, alive[:LIVE_CAP], breathe),
        "live_left_out": max(0, len(alive) - LIVE_CAP),
        "cpu_of_others_s": None if cpu is None else _elsewhere_s(cpu, types),
        "cpu": _NO_CPU if cpu is None else f"sampled for {seconds:g} s",
    }


def _elsewhere_s(cpu: _Cpu, types: list[TaskType]) -> float:
    known = {(one.method, one.name) for one in types}
    others = (s for key, (_, s) in cpu.by_type.items() if key not in known)
    return round(sum(others), 4)


def _described(
    call: Call,
    line: Timeline,
    one: TaskType,
    covered_s: float,
    cpu: _Cpu | None,
) -> dict[str, Any]:
    total_ns = one.time_ns or 1
    cpu_s, error_s = (None, None) if cpu is None else cpu.of(one.method, one.name)
    slowest = []
    for duration_ns, serial in sorted(one.slowest, reverse=True):
        task = line.task(serial)
        if task is not None:
            told = onetask.reference(line, task)
            told["url"] = f"{call.mount}/tasks/{told['id']}"
            slowest.append({**told, "duration_ms": round(duration_ns / 1e6, 3)})
    names = ("p50_ms", "p90_ms", "p99_ms", "max_ms")
    found = one.quantiles_ns(0.5, 0.9, 0.99, 1.0)
    return {
        "name": one.name,
        "method": one.method,
        "alive": one.alive,
        "ended": one.ended,
        "cut": one.cut,
        "errors": one.errors,
        "per_second": round(one.ended / covered_s, 3),
        "latency": {
            "counts": one.histogram(),
            **{n: round(ns / 1e6, 3) for n, ns in zip(names, found, strict=False)},
        },
        "time_s": round(one.time_ns / 1e9, 6),
        "regions": [
            {
                "name": name,
                "count": region.count,
                "failed": region.failed,
                "share": round(region.time_ns / total_ns, 4),
            }
            for name, region in sorted(
                one.regions.items(), key=lambda pair: -pair[1].time_ns
            )
        ],
        "unaccounted": round(one.unaccounted_ns / total_ns, 4),
        "cpu_s": cpu_s,
        "cpu_error_s": error_s,
        "waiting_s": None
        if cpu_s is None
        else round(max(0.0, one.time_ns / 1e9 - cpu_s), 4),
        "slowest": slowest,
    }


def _living(
    call: Call, line: Timeline, alive: list[Task], breathe: Breath
) -> list[dict[str, Any]]:
    stacks = live.stacks_of({t.serial for t in alive}, call.desk.loops(), breathe)
    found = []
    for task in alive:
        inner = [s for s in line.regions_of(task) if s.flags & OPEN_RIGHT]
        told = onetask.reference(line, task)
        told |= {
            "url": f"{call.mount}/tasks/{told['id']}",
            "age_s": round((line.to_ns - task.begin_ns) / 1e9, 3),
            "region": line.name(inner[-1].name) if inner else "",
            "region_age_s": round((line.to_ns - inner[-1].begin_ns) / 1e9, 3)
            if inner
            else None,
            "stacks": stacks.get(task.serial, []),
        }
        found.append(told)
    return found


def _sampled(call: Call, seconds: float) -> _Cpu:
    """CPU by the labels of samples. Blocks so long. Raises: as `collect_cpu`."""
    desk, cpu = call.desk, _Cpu()

    def opened(window: Window) -> None:
        cpu.from_ns = max(time.monotonic_ns(), call.start_ns)
        call.request.cancellation.on_cancel(window.cancel)

    profile = collect_cpu(
        seconds,
        opened,
        hz=desk.knobs.get("cpu_hz"),
        windows=desk.settings.windows,
        each=desk.governor.look,
        start_ns=call.start_ns,
    )
    cpu.to_ns = cpu.from_ns + profile.duration_ns
    cpu.period_s = profile.period / 1e9
    prefix = desk.settings.label_prefix
    for sample in profile.samples:
        labels = dict(sample.labels)
        endpoint = labels.get(prefix + "endpoint")
        name = "" if endpoint is None else f"http:{endpoint}"
        key = labels.get(prefix + "method", ""), name
        samples, cpu_s = cpu.by_type.get(key, (0, 0.0))
        count, ns = sample.values
        cpu.by_type[key] = (samples + count, cpu_s + ns / 1e9)
    return cpu
