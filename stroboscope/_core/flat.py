"""Many stacks as two columns of numbers, and not as many objects.

Two million numbers in tuples take an interpreter hundreds of milliseconds to free, in
one piece and with the GIL; two arrays go at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload


class FlatStacks(Sequence[tuple[int, ...]]):
    """A list of stacks to read, append to and clear: a tuple lives while it is read."""

    __slots__ = ("_ends", "_numbers")

    def __init__(self) -> None:
        self.clear()

    def append(self, stack: Iterable[int]) -> None:
        """Add a stack of numbers, each a C int."""
        self._numbers.extend(stack)
        self._ends.append(len(self._numbers))

    def clear(self) -> None:
        """Free all."""
        self._numbers = array("i")
        self._ends = array("Q", [0])

    def extend(self, stacks: Iterable[Iterable[int]]) -> None:
        """Add many."""
        for stack in stacks:
            self.append(stack)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (self[at] for at in range(len(self)))

    @overload
    def __getitem__(self, at: int) -> tuple[int, ...]: ...
    @overload
    def __getitem__(self, at: slice) -> list[tuple[int, ...]]: ...
    def __getitem__(self, at: int | slice) -> tuple[int, ...] | list[tuple[int, ...]]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        return tuple(self._numbers[self._ends[at] : self._ends[at + 1]])
