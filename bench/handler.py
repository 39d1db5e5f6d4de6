"""Handler time per sample, 40 frames deep, with a labelled context of 41 variables."""

import contextvars
import time

from stroboscope._core import LABELS, LabelCell, engine

DEPTH = 40


def descend(depth: int, seconds: float) -> None:
    if depth:
        descend(depth - 1, seconds)
        return
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(300))


if __name__ == "__main__":
    for i in range(41):
        contextvars.ContextVar[int](f"v{i}").set(i)
    LABELS.set(LabelCell("x"))
    for _ in range(5):
        before = engine.info().counters
        window = engine.open_window(250)
        descend(DEPTH, 2)
        window.close()
        after = engine.info().counters
        count = after["samples"] - before["samples"]
        spent = after["handler_ns"] - before["handler_ns"]
        print(f"{count} samples, {spent / count:.0f} ns each")
    LABELS.set(None)
