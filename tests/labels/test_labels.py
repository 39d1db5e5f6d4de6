"""Labels stay with the work they belong to, and stay few."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stroboscope.errors import LabelError
from stroboscope.labels import Job, carry, current, do, label_set, propagate_to_threads
from stroboscope.labels.outcome import latency_bucket, status_class
from stroboscope.labels.sets import LabelTable


def labels() -> dict[str, str]:
    return dict(current())


def test_sets_are_interned() -> None:
    """Equal labels are one object, whatever their order."""
    assert label_set({"a": "1", "b": "2"}) is label_set({"b": "2", "a": "1"})


@pytest.mark.parametrize("key", ["", "1a", "a-b", "a b", ".a", "a" * 129, "é"])
def test_bad_keys_are_refused_where_defined(key: str) -> None:
    """A key no profile store takes is an error, not a surprise later."""
    with pytest.raises(LabelError):
        label_set({key: "x"})


@pytest.mark.parametrize("value", ["x" * 129, "é" * 65, 1, None, "\ud800"])
def test_bad_values_are_refused_where_defined(value: object) -> None:
    """A value is a string of at most 128 bytes."""
    with pytest.raises(LabelError):
        label_set({"k": value})  # type: ignore[dict-item]


@given(st.text())
def test_lenient_values_are_cut_to_the_cap(value: str) -> None:
    """At request time any text becomes at most 128 bytes of valid UTF-8."""
    made = LabelTable().intern_leniently({"k": value})

    assert len(made["k"].encode()) <= 128


def test_too_many_sets_overflow_and_are_counted() -> None:
    """The cap is on sets alive at once; beyond it everything is one set."""
    table = LabelTable(cap=3)
    held = [table.intern({"k": str(i)}) for i in range(5)]

    assert held[3] is held[4] is table.overflow
    assert table.stats().overflowed == 2
    del held
    assert table.intern({"k": "9"}) is not table.overflow


def test_do_nests_and_restores() -> None:
    """Inner labels join the outer ones, win on the same key, and go."""
    with do(a="1", b="1"):
        with do(b="2"):
            assert labels() == {"a": "1", "b": "2"}
        assert labels() == {"a": "1", "b": "1"}
    assert labels() == {}


def test_do_restores_after_an_exception() -> None:
    """An exception passes through unchanged and takes the labels with it."""
    with pytest.raises(KeyError), do(a="1"):
        raise KeyError
    assert labels() == {}


def test_do_decorates_functions_and_coroutines() -> None:
    """Decorated calls that overlap keep their labels apart."""

    @do(kind="sync")
    def plain() -> dict[str, str]:
        return labels()

    @do(kind="async")
    async def later() -> dict[str, str]:
        await asyncio.sleep(0)
        return labels()

    async def both() -> list[dict[str, str]]:
        return list(await asyncio.gather(later(), later()))

    assert plain() == {"kind": "sync"}
    assert asyncio.run(both()) == [{"kind": "async"}] * 2
    assert labels() == {}


def test_child_tasks_and_to_thread_inherit() -> None:
    """The ContextVar's own inheritance is ours."""

    async def main() -> tuple[dict[str, str], dict[str, str]]:
        async with do(a="1"):
            task = asyncio.create_task(asyncio.sleep(0, result=None))
            await task
            child = asyncio.create_task(_async_labels())
            return await child, await asyncio.to_thread(labels)

    assert asyncio.run(main()) == ({"a": "1"}, {"a": "1"})


async def _async_labels() -> dict[str, str]:
    return labels()


def in_thread(function: Callable[[], dict[str, str]]) -> dict[str, str]:
    out: list[dict[str, str]] = []
    thread = threading.Thread(target=lambda: out.append(function()))
    thread.start()
    thread.join()
    return out[0]


def test_bare_threads_are_unlabelled_unless_carried() -> None:
    """Missing beats wrong; `carry` makes it right."""
    with do(a="1"):
        assert in_thread(labels) == {}
        assert in_thread(carry(labels)) == {"a": "1"}


def test_propagation_is_opt_in_and_undone() -> None:
    """New threads and pool jobs inherit while it is on, and only then."""
    undo = propagate_to_threads()
    again = propagate_to_threads()
    try:
        again()
        with ThreadPoolExecutor(1) as pool:
            with do(a="1"):
                assert in_thread(labels) == {"a": "1"}
                assert pool.submit(labels).result() == {"a": "1"}
            assert pool.submit(labels).result() == {}
    finally:
        undo()
    with do(a="1"):
        assert in_thread(labels) == {}


def test_a_job_takes_its_labels_through_a_queue() -> None:
    """A Job runs under the labels it was made with."""
    jobs: queue.Queue[Job[dict[str, str]]] = queue.Queue()
    with do(a="1"):
        jobs.put(Job(labels))

    assert jobs.get()() == {"a": "1"}


def test_outcome_labels_are_buckets() -> None:
    """Status classes and latency buckets, spelled for people."""
    assert [status_class(s) for s in (200, 404, 599, 99)] == [
        "2xx",
        "4xx",
        "5xx",
        "other",
    ]
    bounds = (0.1, 1.0)
    assert [latency_bucket(s, bounds) for s in (0.05, 0.1, 0.5, 2)] == [
        "<=100ms",
        "<=100ms",
        "<=1s",
        ">1s",
    ]
