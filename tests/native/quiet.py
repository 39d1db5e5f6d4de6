"""A little of everything, slowly: for valgrind, where the crash hunt would take hours."""

import asyncio
import sys
import threading
from collections.abc import Callable

import hammer

from stroboscope._core import LABELS, LabelCell, engine
from stroboscope._core.contention import contention
from stroboscope.profiles import heap
from stroboscope.tracing import recorder


def burn() -> None:
    sum(i * i for i in range(30_000))


async def request(label: str) -> None:
    LABELS.set(LabelCell(label))
    for _ in range(5):
        burn()
        await asyncio.sleep(0)


async def both() -> None:
    await asyncio.gather(request("a"), request("b"))


def everything_else() -> int:
    """The crash hunt's other parts, once each at the finest rates; rows of the heap."""
    contention.set_mutex_fraction(1)
    contention.set_block_rate(1)
    heap.set_rate(512)
    recorder.configure("quiet", 1 << 20)
    recorder.set_flight(True)
    for work in (
        hammer.locks_are_fought_over,
        hammer.memory_comes_and_goes,
        hammer.requests_are_traced,
        hammer.recorder_comes_and_goes,
        hammer.stacks_are_read_at_rest,
        hammer.generators_and_errors,
    ):
        work()
    found = len(heap.collect_heap().samples)
    contention.set_mutex_fraction(0)
    contention.set_block_rate(0)
    heap.set_rate(0)
    recorder.close()
    return found


def main() -> int:
    rows = 0
    for _ in range(3):
        window = engine.open_window(250)
        asyncio.run(both())
        threads = [threading.Thread(target=burn) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        space: dict[str, Callable[[], int]] = {}
        exec("def f():\n return sum(range(30000))\nf()", space)
        del space
        rows += len(window.close().rows)
    held = everything_else()
    print(
        rows,
        "rows,",
        held,
        "of the heap,",
        engine.info().counters["samples"],
        "samples",
    )
    return 0 if rows and held else 1


if __name__ == "__main__":
    sys.exit(main())
