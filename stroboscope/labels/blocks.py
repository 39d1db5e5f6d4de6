"""What labels and tasks share: blocks that are sync and async, and functions' kinds."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

#: Makes a block for one use.
Within = Callable[[], AbstractContextManager[object]]


class Block(ABC):
    """A context manager that never waits, so it is an async one as well."""

    @abstractmethod
    def __enter__(self) -> None: ...

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)


def kind_of(function: Callable[..., Any]) -> str:
    """What calling it gives: coroutine, generator, async generator, or function."""
    for each in (function, getattr(function, "__call__", None)):  # noqa: B004
        if inspect.iscoroutinefunction(each):
            return "coroutine"
        if inspect.isasyncgenfunction(each):
            return "async generator"
        if inspect.isgeneratorfunction(each):
            return "generator"
    return "function"


def async_generator(
    function: Callable[..., AsyncGenerator[Any, Any]], whole: Within, each: Within
) -> Callable[..., AsyncGenerator[Any, Any]]:
    """The same, run within one block and each of its steps within another.

    What is sent or thrown to it, and its end, reach it: Python has no `yield from` for
    these.
    """

    async def run(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        with whole():
            generator = function(*args, **kwargs)
            step, value = generator.asend, None
            while True:
                try:
                    with each():
                        item = await step(value)
                except StopAsyncIteration:
                    return
                try:
                    step, value = generator.asend, (yield item)
                except GeneratorExit:
                    with each():
                        await generator.aclose()
                    raise
                except BaseException as error:  # the consumer's, for the generator
                    step, value = generator.athrow, error

    return run
