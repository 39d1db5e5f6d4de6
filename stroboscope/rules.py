"""When the last seconds are kept, and how many of them: `latency=2 p99=10 errors`."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Words of the text, and the smallest and largest value each takes.
_BOUNDS = {
    "latency": (0.001, 3600.0),
    "p99": (1.5, 1000.0),
    "stall": (0.01, 3600.0),
    "rss": (float(1 << 20), float(1 << 50)),
    "tasks": (1.0, 1e9),
    "per_hour": (1.0, 1000.0),
    "window": (1.0, 86_400.0),
    "bytes": (float(1 << 20), float(1 << 40)),
}
_WHOLE = frozenset({"rss", "tasks", "per_hour", "bytes"})


@dataclass(frozen=True, slots=True)
class Rules:
    """What triggers evidence (0 or false: nothing of that kind), and its budget."""

    #: Seconds that a request took.
    latency: float = 0.0
    #: So many times the 99th percentile of its endpoint.
    p99: float = 0.0
    #: A status of 500 and above, or an exception.
    errors: bool = False
    #: Seconds that a loop, or a request that keeps its thread, stood still.
    stall: float = 0.0
    #: Resident bytes of the process.
    rss: int = 0
    #: asyncio tasks of its loops.
    tasks: int = 0
    #: Most pieces an hour, of a process and of all workers of the host together.
    per_hour: int = 12
    #: Seconds in which an endpoint has one at most.
    window: float = 300.0
    #: Of all files together.
    bytes: int = 256 << 20

    @classmethod
    def parse(cls, text: str) -> Rules:
        """Raises: ValueError with what is allowed."""
        values: dict[str, float | int | bool] = {}
        for word in text.replace(",", " ").split():
            name, equals, value = word.partition("=")
            if name in values:
                raise ValueError(f"{name} once")
            if name == "errors" and not equals:
                values[name] = True
            else:
                values[name] = _number(name, value)
        return cls(**values)  # type: ignore[arg-type]

    @property
    def are_any(self) -> bool:
        """Whether anything triggers evidence."""
        return bool(self.of_requests or self.stall or self.of_process)

    @property
    def of_requests(self) -> bool:
        """Whether the end of a request may."""
        return bool(self.latency or self.p99 or self.errors)

    @property
    def of_process(self) -> bool:
        """Whether something has to be looked at again and again."""
        return bool(self.rss or self.tasks)


def _number(name: str, text: str) -> float | int:
    if name not in _BOUNDS:
        raise ValueError(f"errors, {', '.join(f'{n}=' for n in _BOUNDS)}")
    low, high = _BOUNDS[name]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high or (name in _WHOLE and value != int(value)):
        raise ValueError(f"{name}: {low:.12g} to {high:.12g}")
    return int(value) if name in _WHOLE else value


def problem(text: str, folder: str, rundir: str) -> str:
    """What is allowed, where the rules or the places to keep evidence are wrong."""
    try:
        found = Rules.parse(text)
    except ValueError as error:
        return str(error)
    if folder and not folder.startswith("/"):
        return "an absolute path in evidence_dir"
    if found.are_any and not folder and rundir == "off":
        return "with a run directory, or with evidence_dir"
    return ""
