"""`task`: work that is no request, or a part of one that stands on its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

from stroboscope._core import LABELS, LabelCell
from stroboscope.labels.blocks import Block, kind_of
from stroboscope.tracing import otel

P = ParamSpec("P")
R = TypeVar("R")


class task(Block):
    """A task around a block, a function or a coroutine function.

        with task("rebuild-index"): ...
        @task("nightly")
        async def nightly(): ...

    Regions and logs inside belong to it, in child tasks and threads as well, as far as
    context goes. Inside another task it is a child of that one. Costs little while
    nothing records. Reusable, re-entrant, safe from any thread and task.
    """

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a task's name is a str, not {type(name).__name__}")
        self.name = name
        self._cells: list[LabelCell] = []

    def __enter__(self) -> None:
        cell = LabelCell(None, LABELS.get())
        span = otel.current_span()
        cell.begin_task("task", self.name, otel.link_of(span))
        # Inside of a request the span is the request's, and says so.
        if span is not None and cell.parent is None and cell.recorded:
            otel.name_task(span, cell)
        LABELS.set(cell)
        self._cells.append(cell)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The two halves may run in different contexts: what to undo is found in this
        # one, and where nothing is, the context stays as it is.
        cell = LABELS.get()
        while cell is not None and cell not in self._cells:
            cell = cell.parent
        if cell is not None:
            LABELS.set(cell.parent)
            self._cells.remove(cell)
        elif self._cells:
            cell = self._cells.pop()
        if cell is not None:
            # As a program's exit code: see `statistics.RAISED`.
            cell.end_task(None, int(isinstance(error, Exception)))
            cell.publish()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function or a coroutine function: each call is a task.

        Raises: TypeError for a generator, whose steps run in its consumer's task.
        """
        name, kind = self.name, kind_of(function)
        if kind.endswith("generator"):
            raise TypeError("a generator cannot be a task; put one inside it")

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with task(name):
                return function(*args, **kwargs)

        @functools.wraps(function)
        async def run_async(*args: Any, **kwargs: Any) -> Any:
            with task(name):
                return await cast("Any", function)(*args, **kwargs)

        return cast("Callable[P, R]", run_async if kind == "coroutine" else run)
