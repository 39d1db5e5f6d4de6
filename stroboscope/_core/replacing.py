"""Methods replaced for a while, by several of us at once, and put back.

Contention and captures replace the same methods and begin and end in any order, so none
of them can put back what it found: that may be another's, which is over by then. Here
each puts a layer, the layers are made anew over the original at each change, and with
the last of them the original itself stands there again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from stroboscope._threads import Lock

#: Makes of what stands there what shall: it calls that, and does more only while asked.
Wrap = Callable[[Any], Any]


class _Layer(NamedTuple):
    by: str
    made: Any
    below: Any


class Replacements:
    """Of one process. Safe from any thread; a forked child goes on with its parent's."""

    def __init__(self) -> None:
        self._lock, self._process = Lock(), os.getpid()
        self._wanted: dict[tuple[type, str], dict[str, Wrap]] = {}
        self._layers: dict[tuple[type, str], list[_Layer]] = {}

    def put(self, owner: type, name: str, by: str, wrap: Wrap) -> None:
        """Put a layer over what stands in the type itself, unless `by` has one there.

        Raises: KeyError where the type has no such name of its own.
        """
        with self._own_lock():
            at = owner, name
            if by in self._wanted.get(at, ()):
                return
            vars(owner)[name]
            self._wanted.setdefault(at, {})[by] = wrap
            self._settle(at)

    def take(self, by: str) -> int:
        """Take its layers off; how many lie below what somebody else has put there since.

        Those stay until a change after theirs is gone, and only call on: what made them
        is told by nobody to do more.
        """
        with self._own_lock():
            found = [at for at, wanted in self._wanted.items() if by in wanted]
            for at in found:
                del self._wanted[at][by]
                self._settle(at)
            left = [layer for at in found for layer in self._layers.get(at, ())]
            return sum(layer.by == by for layer in left)

    def are_any(self) -> bool:
        """Whether anything is not as it was."""
        return bool(self._layers)

    def _settle(self, at: tuple[type, str]) -> None:
        """Take off what is ours on top, and put on it what is wanted."""
        owner, name = at
        before = here = vars(owner).get(name)
        layers = {id(layer.made): layer for layer in self._layers.get(at, ())}
        while (top := layers.pop(id(here), None)) is not None:
            here = top.below
        kept = [*layers.values()]
        for depth, layer in enumerate(kept):
            if layer.below is here:  # somebody has put back what was before ours
                kept = kept[:depth]
                break
        below = {layer.by for layer in kept}
        fresh = []
        for by, wrap in self._wanted[at].items():
            if by not in below:  # there it works on, below another's
                fresh.append(_Layer(by, wrap(here), here))
                here = fresh[-1].made
        # Known before it is there: a process that forks in between finds its way back.
        self._layers[at] = [*self._layers.get(at, ()), *fresh]
        if here is not before:
            setattr(owner, name, here)
        self._layers[at] = [*kept, *fresh]
        if not self._layers[at]:
            del self._layers[at]
        if not self._wanted[at]:
            del self._wanted[at]

    def _own_lock(self) -> Any:
        if self._process != os.getpid():  # it may be held by a thread of the parent
            self._lock, self._process = Lock(), os.getpid()
        return self._lock


#: The one of this process.
REPLACED = Replacements()
