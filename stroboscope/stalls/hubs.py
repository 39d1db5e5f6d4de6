"""gevent's hub as the watch sees an event loop: it calls a heart, or is late to do so.

Nothing of gevent is imported here: where it runs, it is there. Its parts are asked for
carefully; without one of them the hub is not watched, and the watch says why.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import Context
from typing import Any
from weakref import ref

#: Where a hub keeps what stands for it here.
_KEPT = "_stroboscope_watched"
#: libev's and libuv's word for "can be read".
_READ = 1


class HubLoop:
    """The hub of one thread, with the methods of a loop that the watch calls."""

    def __init__(self, hub: Any) -> None:
        self._hub = ref(hub)
        self._watchers: list[Any] = []

    def is_running(self) -> bool:
        """Whether it can be late."""
        hub = self._hub()
        return hub is not None and not hub.dead and hub.loop is not None

    def call_soon_threadsafe(
        self, callback: Callable[[], object], *, context: Context
    ) -> None:
        """Have the hub call it. Raises: RuntimeError where it cannot."""
        hub = self._hub()
        soon = getattr(getattr(hub, "loop", None), "run_callback_threadsafe", None)
        if soon is None:
            raise RuntimeError("gevent before 20.9, or a hub that is gone")
        soon(context.run, callback)

    def add_reader(self, descriptor: int, callback: Callable[[], object]) -> None:
        """Call back when it can be read, for as long as the hub lives.

        It is no reason for the hub to go on. On the hub's thread.
        """
        hub = self._hub()
        if hub is None:
            raise RuntimeError("the hub is gone")
        watcher = hub.loop.io(descriptor, _READ, ref=False)
        watcher.start(callback)
        self._watchers.append(watcher)


def hub_here() -> HubLoop | None:
    """Of the calling thread, the same each time; None where no greenlets run."""
    local = sys.modules.get("gevent._hub_local")
    found = getattr(local, "get_hub_if_exists", None)
    hub = found() if found is not None else None
    if hub is None:
        return None
    kept = getattr(hub, _KEPT, None)
    if not isinstance(kept, HubLoop) or kept._hub() is not hub:
        kept = HubLoop(hub)
        try:
            setattr(hub, _KEPT, kept)
        except AttributeError:  # a hub of somebody's own making
            return None
    return kept
