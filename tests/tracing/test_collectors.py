"""Collectors of a capture that fail, or that start and stop in their order."""

from collections.abc import Sequence

import pytest

from stroboscope.tracing import Recorder, extras
from stroboscope.tracing.extras import Collector, Fact, Running


class Broken(Collector):
    """Hooks something and fails at one of its steps."""

    name = "broken"
    hooked = False

    def __init__(self, step: str) -> None:
        self._step = step

    def start(self) -> None:
        Broken.hooked = True
        self._fail("start")

    def tick(self) -> None:
        self._fail("tick")

    def stop(self) -> Sequence[Fact]:
        Broken.hooked = False
        self._fail("stop")
        return [("fine", 1)]

    def _fail(self, step: str) -> None:
        if step == self._step:
            raise ZeroDivisionError(step)


@pytest.mark.parametrize("step", ["tick", "stop"])
def test_a_collector_that_fails_is_stopped_and_told_of(
    step: str, flight: Recorder
) -> None:
    """The capture goes on without it, and so do the other collectors."""
    taken = flight.capture(0.1, lambda: False, [Broken(step), extras.Collector()])

    assert taken.ended == "complete"
    assert ("broken", "not collected: ZeroDivisionError") in taken.facts
    assert not Broken.hooked


def test_a_collector_that_cannot_start_leaves_nothing(flight: Recorder) -> None:
    """What it had hooked by then is put back."""
    taken = flight.capture(0.05, lambda: False, [Broken("start")])

    assert ("broken", "not collected: ZeroDivisionError") in taken.facts
    assert not Broken.hooked


def test_collectors_stop_when_the_capture_fails(flight: Recorder) -> None:
    """An exception inside the capture's own wait."""

    def is_cancelled() -> bool:
        raise KeyError

    with pytest.raises(KeyError):
        flight.capture(1, is_cancelled, [Broken("")])

    assert not Broken.hooked


def test_running_stops_the_latest_first() -> None:
    """So that what was hooked twice comes off in turn."""
    order: list[str] = []

    class Noted(Collector):
        def stop(self) -> Sequence[Fact]:
            order.append(self.name)
            return ()

    one, two = Noted(), Noted()
    one.name, two.name = "one", "two"
    running = Running()
    running.start([one, two])
    running.stop()

    assert order == ["two", "one"]
