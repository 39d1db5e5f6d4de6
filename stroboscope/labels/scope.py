"""`do`, `set`, `current`, `without`: labels for the work that runs now.

The labels live in a ContextVar, so child tasks, `asyncio.to_thread` and the worker
threads of anyio and asgiref inherit them. Bare threads do not: see `carry`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

from stroboscope._core import LABELS, LabelCell
from stroboscope.labels.sets import TABLE, LabelSet, label_set

P = ParamSpec("P")
R = TypeVar("R")


class do:
    """Run a block, a function or a coroutine function under more labels.

        with do(step="render"): ...
        @do(role="batch")
        def nightly(): ...

    Nested blocks add to the labels around them; the inner value of a key wins. Reusable
    and re-entrant. Raises LabelError for a key or value out of bounds, when defined.
    """

    def __init__(self, **labels: str) -> None:
        self._labels = label_set(labels)
        self._entered: list[tuple[LabelCell | None, LabelCell]] = []

    def __enter__(self) -> LabelSet:
        outer = LABELS.get()
        cell = LabelCell(self._labels, outer)
        LABELS.set(cell)
        self._entered.append((outer, cell))
        return self._labels

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        outer, cell = self._entered.pop()
        LABELS.set(outer)
        cell.publish()

    async def __aenter__(self) -> LabelSet:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function or coroutine function."""
        labels = self._labels
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                with _entered(labels):
                    return await function(*args, **kwargs)

            return cast("Callable[P, R]", run_async)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with _entered(labels):
                return function(*args, **kwargs)

        return run


class _entered:
    __slots__ = ("_cell", "_outer")

    def __init__(self, labels: LabelSet) -> None:
        self._outer = LABELS.get()
        self._cell = LabelCell(labels, self._outer)

    def __enter__(self) -> None:
        LABELS.set(self._cell)

    def __exit__(self, *exc: object) -> None:
        LABELS.set(self._outer)
        self._cell.publish()


def set(**labels: str) -> None:
    """Add labels to everything that runs from here on in this context.

    Raises: LabelError for a key or value out of bounds.
    """
    LABELS.set(LabelCell(label_set(labels), LABELS.get()))


def current() -> LabelSet:
    """The labels in force now; those bound late as far as they are known."""
    chain: list[LabelSet] = []
    cell = LABELS.get()
    while cell is not None:
        overlay = cell.labels
        if overlay is None and cell.source is not None:
            with contextlib.suppress(Exception):
                overlay = cell.source()
        if isinstance(overlay, LabelSet):
            chain.append(overlay)
        cell = cell.parent
    return TABLE.merge(chain[::-1]) if chain else TABLE.empty


def without(*keys: str) -> LabelSet:
    """The labels in force now less these keys, to enter with `do(**dict(...))`."""
    left = {key: value for key, value in current() if key not in keys}
    return TABLE.intern_leniently(left)
