"""What `region("name")` does to a function it decorates. The rest of it is C's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import nullcontext
from typing import Any

from stroboscope._core.recording import region, set_region_decorator
from stroboscope.labels.blocks import async_generator, kind_of


def decorated(name: str, function: Callable[..., Any]) -> Any:
    """The function within a region of its own at each call; it stays what it is.

    A generator's region lasts from its first step to its end, however it ends.
    """
    wrapper = _WRAPPERS[kind_of(function)]
    return functools.wraps(function)(wrapper(name, function))


def _function(name: str, function: Callable[..., Any]) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        with region(name):
            return function(*args, **kwargs)

    return run


def _coroutine(name: str, function: Callable[..., Any]) -> Any:
    async def run(*args: Any, **kwargs: Any) -> Any:
        with region(name):
            return await function(*args, **kwargs)

    return run


def _generator(name: str, function: Callable[..., Any]) -> Any:
    def run(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with region(name):
            return (yield from function(*args, **kwargs))

    return run


def _async_generator(name: str, function: Callable[..., Any]) -> Any:
    return async_generator(function, lambda: region(name), nullcontext)


_WRAPPERS: dict[str, Callable[[str, Callable[..., Any]], Any]] = {
    "function": _function,
    "coroutine": _coroutine,
    "generator": _generator,
    "async generator": _async_generator,
}
set_region_decorator(decorated)
