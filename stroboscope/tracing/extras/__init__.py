"""What a capture collects beside the recorder's events. One file a thing.

Nothing here is there before a capture or after it: what a collector replaces or hooks in
`start` it puts back in `stop`, which is called however the capture ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

Fact = tuple[str, str | int]


class Collector:
    """Collects from `start` to `stop`. All of it is called on one thread of ours."""

    #: As the file calls it.
    name = ""

    def start(self) -> None:
        """Begin. May raise: then it is stopped, and the file says why."""

    def tick(self) -> None:
        """Called some fifty times a second. Takes next to no time."""

    def stop(self) -> Sequence[Fact]:
        """End, and leave all as it was; what a reader has to know to trust it.

        Also called after a `start` that failed.
        """
        return ()

    def leave(self) -> None:
        """In a forked child: take off what is hooked in this process as well."""


class Running:
    """The collectors of one capture. Its methods raise nothing of theirs."""

    def __init__(self) -> None:
        self._running: list[Collector] = []
        self._facts: list[Fact] = []

    def start(self, collectors: Iterable[Collector]) -> None:
        """Start them in turn; one that fails is told of and left out."""
        for one in collectors:
            try:
                one.start()
            except Exception as error:
                self._fail(one, error)
                self._stop(one)  # it may have come half the way
            else:
                self._running.append(one)

    def tick(self) -> None:
        """Give each its turn; one that fails is stopped."""
        for one in list(self._running):
            try:
                one.tick()
            except Exception as error:
                self._fail(one, error)
                self._running.remove(one)
                self._stop(one)

    def leave(self) -> None:
        """In a forked child, which takes no capture."""
        while self._running:
            with contextlib.suppress(Exception):
                self._running.pop().leave()

    def stop(self) -> list[Fact]:
        """Stop them, the latest first; what they say."""
        while self._running:
            self._stop(self._running.pop())
        return self._facts

    def _stop(self, one: Collector) -> None:
        try:
            self._facts.extend(one.stop())
        except Exception as error:
            self._fail(one, error)

    def _fail(self, one: Collector, error: Exception) -> None:
        self._facts.append((one.name, f"not collected: {type(error).__name__}"))
