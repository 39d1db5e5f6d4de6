"""Collections: a slice on the thread that collects, with generation and yield."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Sequence

from stroboscope._core import recording
from stroboscope.tracing.extras import Collector, Fact


class Collections(Collector):
    """The interpreter calls back before and after each; both are C's."""

    name = "collections"

    def start(self) -> None:
        """Hook `gc.callbacks`."""
        gc.callbacks.append(recording.trace_gc)

    def stop(self) -> Sequence[Fact]:
        """Take the hook off."""
        self.leave()
        return ()

    def leave(self) -> None:
        """Take the hook off."""
        with contextlib.suppress(ValueError):  # somebody has emptied the list
            gc.callbacks.remove(recording.trace_gc)
