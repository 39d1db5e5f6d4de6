"""Under which name a thread's track is shown."""

import _thread
import threading

from stroboscope.formats.timeline import Timeline
from stroboscope.tracing import Recorder, region


def names_of_threads(flight: Recorder) -> list[str]:
    block = flight.snapshot()
    assert block is not None
    line = Timeline.read(block)
    return [line.name(name) for _, name in line.threads.values()]


def test_a_thread_that_is_recorded_before_it_has_a_name_gets_it(
    flight: Recorder,
) -> None:
    """threading knows a new thread only after locks for which it may have waited."""
    recorded, go_on = threading.Event(), threading.Event()

    def run() -> None:
        # Who had this ident before may still be in the table.
        threading._active.pop(_thread.get_ident(), None)  # type: ignore[attr-defined]
        with region("early"):
            pass
        recorded.set()
        go_on.wait(10)
        threading.current_thread().name = "late"
        with region("later"):
            pass
        recorded.set()

    _thread.start_new_thread(run, ())
    assert recorded.wait(10)
    before = names_of_threads(flight)
    recorded.clear()
    go_on.set()
    assert recorded.wait(10)

    assert "" in before
    assert "late" not in before
    assert sorted(names_of_threads(flight)) == sorted(name or "late" for name in before)


def test_a_thread_that_never_has_a_name_stays_one_track(flight: Recorder) -> None:
    """However often something of it is recorded."""
    done = threading.Event()

    def run() -> None:
        for _ in range(100):
            with region("again"):
                pass
        done.set()

    before = len(names_of_threads(flight))
    _thread.start_new_thread(run, ())
    assert done.wait(10)

    assert len(names_of_threads(flight)) == before + 1
