"""Handler time per sample, 40 frames deep, in a context of 41 variables."""

import contextvars
import json
import statistics
import time

from stroboscope._core import LABELS, LabelCell, engine

DEPTH = 40
ROUNDS = 9


def descend(depth, seconds):
    if depth:
        descend(depth - 1, seconds)
        return
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        # more memory than the nearest caches hold, as an application touches
        sum(bytes(300_000))


def round_us():
    before = engine.info().counters
    window = engine.open_window(250)
    descend(DEPTH, 1)
    window.close()
    after = engine.info().counters
    count = after["samples"] - before["samples"]
    return (after["handler_ns"] - before["handler_ns"]) / count / 1000


def main():
    for i in range(40):
        contextvars.ContextVar(f"v{i}").set(i)
    LABELS.set(LabelCell("x"))
    rounds = [round_us() for _ in range(ROUNDS)]
    LABELS.set(None)
    return {"median us": round(statistics.median(rounds), 2), "rounds us": rounds}


if __name__ == "__main__":
    print(json.dumps(main()))
