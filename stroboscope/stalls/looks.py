"""What was seen of a thread while it stalled, and whose fault that says it is."""

from __future__ import annotations

import functools
import os
import sysconfig
from contextvars import Context
from dataclasses import dataclass

from stroboscope._core import LABELS, LabelCell, watching
from stroboscope.formats.profile import Frame, Labels
from stroboscope.labels import labels_of

#: Different stacks kept of one stall; more count for their request alone.
STACKS_CAP = 32
Stack = tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """A thread at one moment: the cell and context it ran under, its stack."""

    context: Context | None
    cell: LabelCell | None
    stack: Stack


def look_at(ident: int) -> Look | None:
    """The thread as it stands; None when it is gone or would not stand still."""
    found = watching.look(ident)
    if found is None:
        return None
    context, places = found
    cell = context.get(LABELS) if context is not None else None
    return Look(context, cell, tuple(Frame(*place) for place in places))


class Suspect:
    """One request, or what runs under none, as the looks saw it."""

    def __init__(self, look: Look) -> None:
        self.first = look
        self.labels: Labels = labels_of(look.cell).items
        self.looks = 0
        self.weight = 0.0
        self._stacks: dict[Stack, float] = {}

    def add(self, look: Look, weight: float) -> None:
        """It was seen, for about `weight` seconds."""
        self.looks += 1
        self.weight += weight
        if look.stack in self._stacks or len(self._stacks) < STACKS_CAP:
            self._stacks[look.stack] = self._stacks.get(look.stack, 0.0) + weight

    def place(self) -> tuple[Frame | None, Stack]:
        """Where it was: the innermost place seen for most of the time, and a stack.

        The application's own code where there is any: a stall in a library is the
        fault of who called it.
        """
        if not self._stacks:
            return None, ()
        longest = max(self._stacks, key=self._stacks.__getitem__)
        times: dict[Frame, float] = {}
        for stack, weight in self._stacks.items():
            for frame in set(stack):
                times[frame] = times.get(frame, 0.0) + weight
        own = [frame for frame in longest if is_own(frame.file)] or list(longest)
        half = sum(self._stacks.values()) / 2
        for frame in own:
            if times[frame] > half:
                return frame, longest
        return (own[0] if own else None), longest


class Looks:
    """All looks at one stall."""

    def __init__(self) -> None:
        self.count = 0
        self._suspects: dict[int, Suspect] = {}

    def add(self, look: Look, weight: float) -> Suspect:
        """Note a look that stands for `weight` seconds; returns whom it saw."""
        self.count += 1
        key = root_of(look.cell).serial if look.cell is not None else 0
        suspect = self._suspects.get(key)
        if suspect is None:
            suspect = self._suspects[key] = Suspect(look)
        suspect.add(look, weight)
        return suspect

    def guilty(self) -> Suspect | None:
        """Whoever was seen longest; an idle loop only when nobody else was."""
        if not self._suspects:
            return None
        return max(
            self._suspects.values(),
            key=lambda one: (not is_idle(one.first.stack), one.weight),
        )

    def cause(self) -> str:
        """What the looks say it was; see `Stall`."""
        guilty = self.guilty()
        if guilty is None:
            return "unseen"
        if is_idle(guilty.first.stack):
            return "waiting"
        total = sum(one.weight for one in self._suspects.values())
        return "code" if guilty.weight > total / 2 else "many"


def root_of(cell: LabelCell) -> LabelCell:
    """The cell of the request around a cell."""
    while cell.parent is not None:
        cell = cell.parent
    return cell


_RUNNERS = frozenset(
    {"run", "_run_once", "run_forever", "run_until_complete", "run_in_context"}
)


def is_idle(stack: Stack) -> bool:
    """Whether a loop's thread stands where it waits for events, or runs no Python."""
    if not stack:
        return True
    name = stack[0].function.rpartition(".")[2]
    file = os.path.basename(stack[0].file)
    return (file == "selectors.py" and name == "select") or (
        name in _RUNNERS and not is_own(stack[0].file)
    )


@functools.lru_cache(maxsize=4096)
def is_own(file: str) -> bool:
    """Whether a file is the application's: no library, not ours, not the interpreter."""
    if file.startswith("<") or "site-packages" in file or "dist-packages" in file:
        return False
    return not file.startswith(_foreign())


@functools.lru_cache(maxsize=1)
def _foreign() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = {paths["stdlib"], paths["platstdlib"], paths["purelib"], ours}
    return tuple(os.path.join(path, "") for path in sorted(found) if path)
