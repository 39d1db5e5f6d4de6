"""A little of everything, slowly: for valgrind, where the crash hunt would take hours."""

import asyncio
import sys
import threading
from collections.abc import Callable

from stroboscope._core import LABELS, LabelCell, engine


def burn() -> None:
    sum(i * i for i in range(30_000))


async def request(label: str) -> None:
    LABELS.set(LabelCell(label))
    for _ in range(5):
        burn()
        await asyncio.sleep(0)


async def both() -> None:
    await asyncio.gather(request("a"), request("b"))


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
    print(rows, "rows,", engine.info().counters["samples"], "samples")
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
