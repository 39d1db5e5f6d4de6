"""Scopes: `do` and `without` enter and leave exactly where they stand."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest

from stroboscope._core import LABELS, LabelCell, engine
from stroboscope.errors import LabelError
from stroboscope.labels import current, do, label_set, set, without
from stroboscope.labels.sets import TABLE, Removal
from stroboscope.profiles.cpu import to_profile


def labels() -> dict[str, str]:
    return dict(current())


@pytest.fixture(autouse=True)
def unlabelled() -> Iterator[None]:
    """No test here leaves a label on its thread."""
    assert LABELS.get() is None

    yield

    assert LABELS.get() is None


def test_one_scope_object_serves_many_tasks_at_once() -> None:
    """Overlapping `async with` of one object end where they began, in any order."""
    shared = do(step="shared")

    async def work(name: str, rounds: int) -> list[dict[str, str]]:
        with do(task=name):
            async with shared:
                for _ in range(rounds):
                    await asyncio.sleep(0)
                inside = labels()
            return [inside, labels()]

    async def main() -> list[list[dict[str, str]]]:
        return list(await asyncio.gather(work("a", 3), work("b", 1), work("c", 2)))

    assert asyncio.run(main()) == [
        [{"task": name, "step": "shared"}, {"task": name}] for name in "abc"
    ]


def test_one_scope_object_serves_many_threads_at_once() -> None:
    """Threads that leave in the order they entered get back what they had."""
    shared = do(step="shared")
    entered, leave = threading.Barrier(2), threading.Event()

    def work(name: str) -> dict[str, str]:
        with do(thread=name):
            with shared:
                entered.wait(10)
                if name == "b":
                    leave.wait(10)
            leave.set()
            return labels()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(work, "ab"))

    assert found == [{"thread": "a"}, {"thread": "b"}]


def test_a_scope_object_may_be_entered_again_inside_itself() -> None:
    """Each exit undoes one entry."""
    shared = do(a="1")

    with shared:
        with shared:
            assert labels() == {"a": "1"}
        assert labels() == {"a": "1"}

    assert labels() == {}


def test_leaving_takes_what_was_set_inside_along() -> None:
    """`set` lasts to the end of the block around it, also when it repeats the block."""
    with do(a="1"):
        set(a="2")
        set(a="1")
        assert labels() == {"a": "1"}

    assert labels() == {}


def test_leaving_in_a_context_that_never_entered_changes_nothing() -> None:
    """Frameworks may run the two halves of a dependency in different contexts."""
    scope = do(step="elsewhere")
    copy_context().run(scope.__enter__)

    with do(a="1"):
        scope.__exit__(None, None, None)
        assert labels() == {"a": "1"}


def test_blocks_that_end_crosswise_leave_nothing() -> None:
    """Two suspended blocks of one context may end in the wrong order."""
    first, second = do(a="1"), do(b="2")
    first.__enter__()
    second.__enter__()

    first.__exit__(None, None, None)
    assert labels() == {}

    second.__exit__(None, None, None)
    assert labels() == {}


def test_without_takes_keys_away_and_gives_them_back() -> None:
    """Inside, the key is gone; it may be set anew; after, all is as before."""
    with do(a="1", b="2"):
        with without("a"):
            assert labels() == {"b": "2"}
            with do(a="3"):
                assert labels() == {"a": "3", "b": "2"}
            with without("b"):
                assert labels() == {}
        assert labels() == {"a": "1", "b": "2"}


def test_without_hides_what_a_request_learns_later() -> None:
    """Late labels of the request around it are hidden too, now and in a profile."""
    cell = LabelCell()
    LABELS.set(cell)
    try:
        with without("tenant"), do(step="x"):
            cell.source = lambda: label_set({"endpoint": "/a", "tenant": "t"})
            found = labels()
    finally:
        LABELS.set(None)

    assert found == {"endpoint": "/a", "step": "x"}


def test_a_profile_honours_without() -> None:
    """Samples taken inside `without` lack the key, though it was bound later."""
    cell = LabelCell()
    LABELS.set(cell)
    window = engine.open_window(250)
    try:
        with without("tenant"):
            sum(i * i for i in range(1_500_000))
        cell.source = lambda: label_set({"endpoint": "/a", "tenant": "t"})
    finally:
        LABELS.set(None)
        capture = window.close()
    profile = to_profile(capture)

    found = {sample.labels for sample in profile.samples if sample.labels}
    assert found == {(("endpoint", "/a"),)}


def test_without_works_async_and_as_a_decorator() -> None:
    """The same forms as `do`."""

    @without("a")
    def plain() -> dict[str, str]:
        return labels()

    @without("a")
    async def later() -> dict[str, str]:
        await asyncio.sleep(0)
        return labels()

    async def main() -> list[dict[str, str]]:
        with do(a="1", b="2"):
            async with without("b"):
                inside = labels()
            return [inside, plain(), await later(), labels()]

    kept = {"b": "2"}
    assert asyncio.run(main()) == [{"a": "1"}, kept, kept, {"a": "1", "b": "2"}]


@pytest.mark.parametrize("keys", [(), ("a-b",), (3,), ("a", "")])
def test_without_refuses_what_is_no_key(keys: tuple[Any, ...]) -> None:
    """A key nothing could carry is a mistake, and so is none at all."""
    with pytest.raises(LabelError):
        without(*keys)


def test_merging_ignores_what_is_no_overlay() -> None:
    """A chain holds what others put there: strange parts cost nothing."""
    chain = [label_set({"a": "1", "b": "2"}), "strange", Removal(frozenset("a"))]

    assert dict(TABLE.merge(chain)) == {"b": "2"}
    assert TABLE.merge([Removal(frozenset("a"))]) is TABLE.empty
    assert TABLE.merge([]) is TABLE.empty


def test_decorated_functions_keep_their_kind() -> None:
    """Frameworks ask what a function is before they call it."""

    @do(a="1")
    async def coroutine() -> None: ...

    @do(a="1")
    def generator() -> Iterator[int]:
        yield 1

    @do(a="1")
    async def async_generator() -> AsyncIterator[int]:
        yield 1

    @do(a="1")
    def plain() -> None: ...

    assert inspect.iscoroutinefunction(coroutine)
    assert inspect.isgeneratorfunction(generator)
    assert inspect.isasyncgenfunction(async_generator)
    assert not inspect.iscoroutinefunction(plain)
    assert not inspect.isgeneratorfunction(plain)


def test_an_object_with_a_coroutine_call_is_decorated_as_one() -> None:
    """The labels hold while it is awaited, not only while it is called."""

    class Endpoint:
        async def __call__(self) -> dict[str, str]:
            await asyncio.sleep(0)
            return labels()

    assert asyncio.run(do(a="1")(Endpoint())()) == {"a": "1"}


def test_a_decorated_generator_is_labelled_at_each_step_only() -> None:
    """Between two steps the consumer has its own labels, whoever it is."""

    @do(step="gen")
    def numbers() -> Generator[dict[str, str], str, str]:
        got = yield labels()
        try:
            got += (yield labels())["x"]  # type: ignore[index,assignment]
        except KeyError:
            yield {"thrown": labels()["step"]}
        return "done " + got

    running = numbers()
    with do(request="one"):
        assert next(running) == {"request": "one", "step": "gen"}
        assert labels() == {"request": "one"}
    with do(request="two"):
        assert running.send("sent") == {"request": "two", "step": "gen"}
        assert running.throw(KeyError("x")) == {"thrown": "gen"}
        assert labels() == {"request": "two"}
        with pytest.raises(StopIteration) as ended:
            next(running)
    assert ended.value.value == "done sent"


def test_closing_a_decorated_generator_runs_its_end_labelled() -> None:
    """`finally` blocks run under the labels, and the generator is closed at once."""
    seen: list[dict[str, str]] = []

    @do(step="gen")
    def numbers() -> Iterator[int]:
        try:
            yield 1
        finally:
            seen.append(labels())

    running = numbers()
    next(running)
    running.close()  # type: ignore[attr-defined]

    assert seen == [{"step": "gen"}]


def test_a_decorated_async_generator_is_labelled_at_each_step_only() -> None:
    """Two of them interleaved on one task keep apart, to their `finally` blocks."""
    seen: list[dict[str, str]] = []

    @do(step="agen")
    async def numbers(name: str) -> AsyncIterator[dict[str, str]]:
        try:
            while True:
                await asyncio.sleep(0)
                try:
                    yield labels()
                except KeyError:
                    yield {"thrown": labels()["step"]}
        finally:
            await asyncio.sleep(0)
            seen.append(labels())

    async def main() -> list[dict[str, str]]:
        first: Any = numbers("a")
        second: Any = numbers("b")
        found = [await anext(first), labels(), await anext(second), labels()]
        found += [await first.asend(None), await first.athrow(KeyError("x")), labels()]
        await second.aclose()
        await first.aclose()
        return found

    inside = {"step": "agen"}
    assert asyncio.run(main()) == [
        *(inside, {}, inside, {}),
        *(inside, {"thrown": "agen"}, {}),
    ]
    assert seen == [inside, inside]


@pytest.mark.parametrize("kind", [do(a="1"), without("a")], ids=["do", "without"])
def test_an_exception_in_a_decorated_function_passes_unchanged(
    kind: Callable[[Any], Any],
) -> None:
    """The very exception, and the labels are gone after it."""
    error = KeyError("mine")

    @kind
    def fails() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        fails()

    assert caught.value is error
