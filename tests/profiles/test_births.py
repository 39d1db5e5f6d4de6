"""threadcreate counts starts where they were made, and leaves `Thread` as it was."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from stroboscope.labels import propagate_to_threads
from stroboscope.profiles import births


@pytest.fixture(autouse=True)
def counted() -> Iterator[None]:
    births.switch(True)
    yield
    births.switch(False)


def starts(name: str) -> int:
    """Threads started by a function of this name, or by what it called."""
    total: Counter[bool] = Counter()
    for sample in births.collect_births().samples:
        total[any(f.function == name for f in sample.stack)] += sample.values[0]
    return total[True]


def start_one() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def test_each_start_counts_at_the_place_that_made_it() -> None:
    """Seven here, and those of a pool where the pool starts them; sums only grow."""
    before, pooled = starts("start_one"), starts(POOL)
    for _ in range(7):
        start_one()
    together = threading.Barrier(3)  # else one thread may do the work of two
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda i: together.wait(20), range(3)))

    assert starts("start_one") - before == 7
    assert starts(POOL) - pooled == 3


POOL = "ThreadPoolExecutor._adjust_thread_count"


def test_a_start_that_fails_does_not_count() -> None:
    """A thread that cannot start twice raises as ever, and is one thread."""

    def twice() -> None:
        thread = threading.Thread(target=int)
        thread.start()
        with pytest.raises(RuntimeError, match="once"):
            thread.start()
        thread.join()

    name = "test_a_start_that_fails_does_not_count.<locals>.twice"
    before = starts(name)
    twice()

    assert starts(name) - before == 1


def test_off_is_the_method_that_was_there() -> None:
    """Switched off nothing of ours is left; what others put over it goes on to work,
    in whatever order it comes off."""
    births.switch(False)
    plain = threading.Thread.start
    births.switch(True)
    undo = propagate_to_threads()
    births.switch(False)
    before = starts("start_one")
    start_one()
    assert starts("start_one") == before
    births.switch(True)
    start_one()
    assert starts("start_one") == before + 1
    undo()
    start_one()
    births.switch(False)

    assert threading.Thread.start is plain
