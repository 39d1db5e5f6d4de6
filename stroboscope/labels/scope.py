"""`do`, `without`, `set`, `current`: labels for the work that runs now.

The labels live in a ContextVar, so child tasks, `asyncio.to_thread` and the worker
threads of anyio and asgiref inherit them. Bare threads do not: see `carry`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

from stroboscope._core import LABELS, LabelCell
from stroboscope.errors import LabelError
from stroboscope.labels.blocks import Block, async_generator, kind_of
from stroboscope.labels.sets import (
    TABLE,
    LabelSet,
    Overlay,
    check_key,
    label_set,
    removal,
)

P = ParamSpec("P")
R = TypeVar("R")


class _Scope(Block):
    """Enters and leaves one overlay; as block, decorator, sync and async.

    Keeps nothing between entry and exit: one object may be entered again inside
    itself, and by many tasks and threads at once.
    """

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay

    def __enter__(self) -> None:
        LABELS.set(LabelCell(self._overlay, LABELS.get()))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The two halves may run in different contexts (a dependency with `yield` in
        # worker threads), and blocks of suspended generators may end crosswise. So
        # what to undo is found in this context, and where nothing is, nothing is done.
        cell = LABELS.get()
        while cell is not None:
            if cell.labels is self._overlay and cell.source is not _from_set:
                LABELS.set(cell.parent)
                cell.publish()
                return
            cell = cell.parent

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function, coroutine function, generator or async generator.

        It stays what it is. A generator is labelled while it runs, from `next` to
        `yield`, on top of the labels of whoever runs it; the code that consumes it is
        not.
        """
        wrapper = _WRAPPERS[kind_of(function)]
        return cast("Callable[P, R]", wrapper(self._overlay, function))


class do(_Scope):
    """Run a block, a function or a coroutine function under more labels.

        with do(step="render"): ...
        @do(role="batch")
        def nightly(): ...

    Nested blocks add to the labels around them; the inner value of a key wins.
    Reusable, re-entrant, safe from any thread and task. A `with` block around a
    `yield` labels the consumer too, as any context variable: decorate instead.
    Raises LabelError for a key or value out of bounds, when defined.
    """

    def __init__(self, **labels: str) -> None:
        super().__init__(label_set(labels))


class without(_Scope):
    """Run a block or a function without these keys, the same ways as `do`.

        with without("tenant"): ...

    Also takes away what the request around it only learns later. Blocks inside may
    set the keys again. Raises LabelError for no key at all or one that cannot be.
    """

    def __init__(self, *keys: str) -> None:
        if not keys:
            raise LabelError("without() takes the keys to remove; there are none")
        for key in keys:
            check_key(key)
        super().__init__(removal(frozenset(keys)))


def set(**labels: str) -> None:
    """Add labels to what runs from here on in this context, to the end of the block.

    Raises: LabelError for a key or value out of bounds.
    """
    cell = LabelCell(label_set(labels), LABELS.get())
    cell.source = _from_set
    LABELS.set(cell)


def _from_set() -> None:
    """Mark a cell that `set` made: a block with equal labels must not end at it."""


def current() -> LabelSet:
    """The labels in force now; those bound late as far as they are known."""
    return labels_of(LABELS.get())


def labels_of(cell: LabelCell | None) -> LabelSet:
    """The labels of a cell, of any thread or task, as far as they are known."""
    chain: list[object] = []
    while cell is not None:
        overlay = cell.labels
        if not cell.ended and cell.source is not None:
            with contextlib.suppress(Exception):
                overlay = cell.source() or overlay
        chain.append(overlay)
        cell = cell.parent
    return TABLE.merge(chain[::-1])


def is_settled(cell: LabelCell | None) -> bool:
    """Whether the labels of a cell can change no more."""
    while cell is not None:
        if not cell.ended and cell.source not in (None, _from_set):
            return False
        cell = cell.parent
    return True


class _entered:
    """One entry of an overlay, for wrappers: its two halves share a frame."""

    __slots__ = ("_cell", "_outer")

    def __init__(self, overlay: Overlay) -> None:
        self._outer = LABELS.get()
        self._cell = LabelCell(overlay, self._outer)

    def __enter__(self) -> None:
        LABELS.set(self._cell)

    def __exit__(self, *exc: object) -> None:
        LABELS.set(self._outer)
        self._cell.publish()


def _function(overlay: Overlay, function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _entered(overlay):
            return function(*args, **kwargs)

    return run


def _coroutine(overlay: Overlay, function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    async def run(*args: Any, **kwargs: Any) -> Any:
        with _entered(overlay):
            return await function(*args, **kwargs)

    return run


def _generator(overlay: Overlay, function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        generator = function(*args, **kwargs)
        step, value = generator.send, None
        while True:
            try:
                with _entered(overlay):
                    item = step(value)
            except StopIteration as ended:
                return ended.value
            try:
                step, value = generator.send, (yield item)
            except GeneratorExit:
                with _entered(overlay):
                    generator.close()
                raise
            except BaseException as error:  # the consumer's, for the generator
                step, value = generator.throw, error

    return run


def _async_generator(overlay: Overlay, function: Callable[..., Any]) -> Any:
    run = async_generator(function, contextlib.nullcontext, lambda: _entered(overlay))
    return functools.wraps(function)(run)


_WRAPPERS: dict[str, Callable[[Overlay, Callable[..., Any]], Any]] = {
    "function": _function,
    "coroutine": _coroutine,
    "generator": _generator,
    "async generator": _async_generator,
}
