"""Does a text contain a match: regular expressions in linear time.

Patterns come from operators over the network, and Python's `re` may take for ever over
a short one, holding the GIL so that the application stands still. Here a text costs its
length times the size of the pattern at worst, and the other threads get their turns.
Syntax and meaning are Go's, as in pprof. Source: Thompson, "Regular expression search
algorithm", CACM 11(6), 1968, with states kept once they are known.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from stroboscope.errors import PatternError
from stroboscope.formats._syntax import Step, compiled

#: Instructions looked at in all, over all texts and all patterns of one request: some
#: seconds of CPU.
WORK_CAP = 5_000_000
#: Transitions kept; then they are found anew.
MOVES_CAP = 20_000
_MATCHED = -1
_PLAIN = re.compile(r"[^\\.+*?()|\[\]{}^$]*")
# What stands before a place, as far as a condition on it can tell.
_BEGIN, _NEWLINE, _WORD, _OTHER = range(4)


def _no_breath() -> None:
    pass


class Work:
    """What the patterns of one request have cost together."""

    __slots__ = ("_done",)

    def __init__(self) -> None:
        self._done = 0

    def add(self, instructions: int) -> None:
        """Raises: PatternError beyond `WORK_CAP`."""
        self._done += instructions
        if self._done > WORK_CAP:
            raise PatternError("too costly for the names here; use a simpler one")


class Pattern:
    """A pattern, compiled. Raises: PatternError with what is wrong with it.

    For one thread. `breathe` is called now and then, for a caller who shares the GIL
    with an application; `work` is shared with the other patterns of a request.
    """

    def __init__(
        self,
        text: str,
        breathe: Callable[[], None] = _no_breath,
        work: Work | None = None,
    ) -> None:
        self.text = text
        self._steps, self._start = compiled(text)
        self._plain = text if _PLAIN.fullmatch(text) else None
        self._breathe = breathe
        self._work = work or Work()
        self._forget()

    @property
    def size(self) -> int:
        """Instructions of its program."""
        return len(self._steps)

    def found_in(self, text: str) -> bool:
        """Whether it matches anywhere. Raises: PatternError beyond `WORK_CAP`."""
        if self._plain is not None:
            return self._plain in text
        state = 0
        for char in text:
            following = self._moves[state].get(char)
            if following is None:
                following = self._move(state, char)
            if following == _MATCHED:
                return True
            state = following
        return self._closure(state, "") is None

    def _forget(self) -> None:
        #: A state: the instructions it waits at, and what stands before them.
        first = (frozenset[int](), _BEGIN)
        self._states = [first]
        self._numbers = {first: 0}
        self._moves: list[dict[str, int]] = [{}]
        self._kept = 0

    def _move(self, state: int, char: str) -> int:
        """The number of the state after one more character."""
        waiting = self._closure(state, char)
        if waiting is None:
            self._moves[state][char] = _MATCHED
            return _MATCHED
        found = frozenset(
            step.following[0] for step in waiting if step.chars and step.chars.has(char)
        )
        key = (found, _kind(char))
        if self._kept >= MOVES_CAP:
            self._forget()
            self._states.append(key)
            self._numbers[key] = 1
            self._moves.append({})
            return 1
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._states)
            self._states.append(key)
            self._moves.append({})
        self._moves[state][char] = number
        self._kept += 1
        return number

    def _closure(self, state: int, char: str) -> list[Step] | None:
        """The characters waited for where `char` comes next; None for a match."""
        self._breathe()
        places, before = self._states[state]
        left, seen = [*places, self._start], set[int]()
        waiting: list[Step] = []
        while left:
            at = left.pop()
            if at == 0:
                return None
            if at in seen:
                continue
            seen.add(at)
            step = self._steps[at]
            if step.chars is not None:
                waiting.append(step)
            elif not step.holds or _holds(step.holds, before, char):
                left += step.following
        self._work.add(len(seen))
        return waiting


def _kind(char: str) -> int:
    if char == "\n":
        return _NEWLINE
    is_word = char == "_" or (char.isascii() and char.isalnum())
    return _WORD if is_word else _OTHER


def _holds(condition: str, before: int, char: str) -> bool:
    """Whether a condition holds between what was and `char`, empty at the end."""
    if condition == "begin":
        return before == _BEGIN
    if condition == "line_begin":
        return before in (_BEGIN, _NEWLINE)
    if condition == "end":
        return not char
    if condition == "line_end":
        return char in ("", "\n")
    is_border = (before == _WORD) is not (bool(char) and _kind(char) == _WORD)
    return is_border is (condition == "word")
