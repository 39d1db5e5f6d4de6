"""What a walk over threads and tasks found: plain data, and where asyncio keeps tasks."""

from __future__ import annotations

import sys
from array import array
from asyncio import AbstractEventLoop
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stroboscope._core.capture import Frame
from stroboscope._core.flat import FlatStacks

#: States of a task, as the C walk numbers them.
SUSPENDED, RUNNING, CREATED = 1, 2, 3


class ThreadRow(NamedTuple):
    """A thread: the position of its stack, its label cell, what the kernel says of it.

    `age_ns` is -1 where the kernel does not tell, or was not asked.
    """

    ident: int
    stack: int
    cell: Any
    state: str
    age_ns: int


class TaskRow(NamedTuple):
    """An unfinished task; `waiter` is the future it waits for, or None.

    `item` is what the task was given as: itself, or a weak reference.
    """

    stack: int
    state: int
    cell: Any
    task: Any
    waiter: Any
    item: Any


@dataclass(frozen=True, slots=True)
class AtRest:
    """Stacks are positions in `frames`, leaf first, `TRUNCATED` for a cut root.

    Each row was read in one piece while nothing ran Python; rows were not all read at
    the same moment. `tasks` has the position of each task's stack, -1 where the tables
    were full: numbers only, so that no task is kept alive and ten thousand of them give
    the garbage collector nothing to visit.
    """

    frames: list[Frame] = field(default_factory=list)
    stacks: list[tuple[int, ...]] | FlatStacks = field(default_factory=list)
    threads: list[ThreadRow] = field(default_factory=list)
    tasks: array[int] = field(default_factory=lambda: array("q"))


def task_sets(loops: Iterable[AbstractEventLoop] = ()) -> list[set[Any]]:
    """The sets of all tasks of this process, of tasks or of weak references to them.

    asyncio's own sets where it has them: read, and copied by `list`, without running
    Python, they cannot change under the reader. `asyncio.all_tasks` walks them in
    Python, and fails when the loop's thread makes a task meanwhile. From 3.14 the tasks
    are in lists of C's, and `all_tasks` of each loop in `loops` reads those at once.
    """
    tasks = sys.modules.get("asyncio.tasks")
    if tasks is None:
        return []
    if sys.version_info >= (3, 14):
        return [tasks.all_tasks(loop) for loop in loops]
    if sys.version_info >= (3, 12):
        return [tasks._scheduled_tasks.data, tasks._eager_tasks]
    return [tasks._all_tasks.data]
