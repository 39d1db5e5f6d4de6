"""Read Go's regular expressions: a pattern becomes a program of a few instructions.

Only whether a text contains a match is ever asked, so groups capture nothing and `*?` is
`*`. Source: pkg.go.dev/regexp/syntax; what it refuses is refused here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from stroboscope.errors import PatternError
from stroboscope.formats._classes import (
    CATEGORIES,
    LAST,
    PERL,
    POSIX,
    CharSet,
    Range,
    inverted,
)

PATTERN_CAP = 1000
#: Instructions of a program; repetitions are written out.
PROGRAM_CAP = 4000
DEPTH_CAP = 100
REPEAT_CAP = 1000
_CONTROLS = {"a": 7, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
_COUNT = re.compile(r"\{([0-9]+)(,([0-9]*))?\}")
_FLAGS = re.compile(r"\(\?([imsU]*)(-[imsU]+)?([:)])")
_NAMED = re.compile(r"\(\?P?<([A-Za-z0-9_]+)>")
_OCTAL = re.compile(r"[0-7]{1,3}")
_HEX = re.compile(r"\{([0-9A-Fa-f]{1,8})\}|([0-9A-Fa-f]{2})")
_CLASS_NAME = re.compile(r"\[:(\^?)([^:\]]*):\]")
_PROPERTY = re.compile(r"([pP])(?:\{(\^?)([A-Za-z_]*)\}|([A-Z]))")


class Assertion(NamedTuple):
    """A condition on a place: `begin`, `end`, `line_begin`, `line_end`, `word`, `no_word`."""

    kind: str


class Repeat(NamedTuple):
    """A node some number of times; no `most` is any number."""

    node: Node
    least: int
    most: int | None


class Sequence(NamedTuple):
    """Nodes one after another; none is the empty text."""

    nodes: tuple[Node, ...]


class Choice(NamedTuple):
    """One of several nodes."""

    nodes: tuple[Node, ...]


Node = CharSet | Assertion | Repeat | Sequence | Choice


class _Reader:
    """Recursive descent over one pattern."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._flags = frozenset[str]()
        self._depth = 0

    def whole(self) -> Node:
        node = self._choice()
        if self._at < len(self._text):
            raise PatternError("unexpected )")
        return node

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
        return found

    def _choice(self) -> Node:
        options = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def _sequence(self) -> Node:
        nodes: list[Node] = []
        was_repeat = False
        while (char := self._peek()) and char not in "|)":
            repeat = self._repetition()
            if repeat is None:
                nodes += self._atoms()
                was_repeat = False
                continue
            if was_repeat:
                raise PatternError(f"nested repetition at {self._text[: self._at]!r}")
            if not nodes:
                raise PatternError("nothing to repeat")
            nodes[-1] = Repeat(nodes[-1], *repeat)
            was_repeat = True
        return nodes[0] if len(nodes) == 1 else Sequence(tuple(nodes))

    def _repetition(self) -> tuple[int, int | None] | None:
        simple: dict[str, tuple[int, int | None]]
        simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        char = self._peek()
        if char in simple:
            self._at += 1
            found = simple[char]
        else:
            counted = self._take(_COUNT) if char == "{" else None
            if counted is None:
                return None
            least = int(counted[1][:9])
            most = least if counted[2] is None else int(counted[3][:9] or -1)
            if max(least, most) > REPEAT_CAP or -1 < most < least:
                raise PatternError(f"bad repetition {counted[0]}")
            found = (least, None if most < 0 else most)
        if self._peek() == "?":
            self._at += 1
        return found

    def _atoms(self) -> list[Node]:
        char = self._peek()
        if char == "(":
            return self._group()
        if char == "[":
            return [self._class()]
        if char == "\\":
            return self._escaped()
        self._at += 1
        if char == ".":
            has_all = "s" in self._flags
            return [CharSet(() if has_all else ((10, 10),), (), True)]
        if char == "^":
            return [Assertion("line_begin" if "m" in self._flags else "begin")]
        if char == "$":
            return [Assertion("line_end" if "m" in self._flags else "end")]
        return [self._literal(ord(char))]

    def _literal(self, code: int) -> CharSet:
        return CharSet(((code, code),), (), False, "i" in self._flags)

    def _group(self) -> list[Node]:
        before = self._flags
        if flags := self._take(_FLAGS):
            added, removed = frozenset(flags[1]), frozenset((flags[2] or "")[1:])
            self._flags = (before | added) - removed
            if flags[3] == ")":
                return []
        elif self._text.startswith("(?", self._at):
            if self._take(_NAMED) is None:
                shown = self._text[self._at : self._at + 4]
                raise PatternError(f"unsupported group {shown}")
        else:
            self._at += 1
        self._depth += 1
        if self._depth > DEPTH_CAP:
            raise PatternError("nested too deeply")
        node = self._choice()
        if self._peek() != ")":
            raise PatternError("missing )")
        self._at += 1
        self._depth -= 1
        self._flags = before
        return [node]

    def _escaped(self) -> list[Node]:
        following = self._text[self._at + 1 : self._at + 2]
        kinds = {"A": "begin", "z": "end", "b": "word", "B": "no_word"}
        if following in kinds and following:
            self._at += 2
            return [Assertion(kinds[following])]
        if following == "Q":
            quoted, _, _ = self._text[self._at + 2 :].partition("\\E")
            self._at = min(len(self._text), self._at + 4 + len(quoted))
            return [self._literal(ord(char)) for char in quoted]
        if group := self._escaped_class():
            return [CharSet(*group, False, "i" in self._flags)]
        return [self._literal(self._escaped_code())]

    def _escaped_class(
        self,
    ) -> tuple[tuple[Range, ...], tuple[tuple[str, bool], ...]] | None:
        r"""What `\d`, `\W` and `\p{Lu}` stand for, or None where there is no such."""
        following = self._text[self._at + 1 : self._at + 2]
        if following and following in "dswDSW":
            self._at += 2
            ranges = PERL[following.lower()]
            return (ranges if following.islower() else inverted(ranges)), ()
        if not following or following not in "pP":
            return None
        self._at += 1
        found = self._take(_PROPERTY)
        name = (found[3] or found[4] or "") if found else ""
        if found is None or name not in CATEGORIES:
            raise PatternError(f"unknown property {name!r}")
        return (), ((name, (found[1] == "P") is bool(found[2])),)

    def _escaped_code(self) -> int:
        following = self._text[self._at + 1 : self._at + 2]
        self._at += 2
        if not following:
            raise PatternError("trailing \\")
        if following in _CONTROLS:
            return _CONTROLS[following]
        if following == "x" and (found := self._take(_HEX)):
            code = int(found[1] or found[2], 16)
            if code <= LAST:
                return code
        is_octal = following == "0" or (
            following in "1234567" and self._peek() in set("01234567")
        )
        if is_octal:
            self._at -= 1
            digits = self._take(_OCTAL)
            return int(digits[0], 8) if digits else 0
        if following.isascii() and not following.isalnum():
            return ord(following)
        raise PatternError(f"unknown escape \\{following}")

    def _class(self) -> CharSet:
        self._at += 1
        is_negated = self._peek() == "^"
        self._at += is_negated
        ranges: list[Range] = []
        categories: list[tuple[str, bool]] = []
        is_first = True
        while self._peek() != "]" or is_first:
            is_first = False
            if not self._peek():
                raise PatternError("missing ]")
            if named := self._take(_CLASS_NAME):
                if named[2] not in POSIX:
                    raise PatternError(f"unknown class {named[0]}")
                found = POSIX[named[2]]
                ranges += inverted(found) if named[1] else found
                continue
            group = self._escaped_class() if self._peek() == "\\" else None
            if group is not None:
                ranges += group[0]
                categories += group[1]
                continue
            ranges.append(self._range())
        self._at += 1
        folds = "i" in self._flags
        return CharSet(tuple(ranges), tuple(categories), is_negated, folds)

    def _range(self) -> Range:
        low = high = self._class_code()
        ahead = self._text[self._at : self._at + 2]
        if len(ahead) == 2 and ahead[0] == "-" and ahead[1] != "]":
            self._at += 1
            high = self._class_code()
            if high < low:
                raise PatternError("bad range in []")
        return low, high

    def _class_code(self) -> int:
        char = self._peek()
        if char == "\\":
            return self._escaped_code()
        if not char:
            raise PatternError("missing ]")
        self._at += 1
        return ord(char)


class Step(NamedTuple):
    """An instruction: consume one of `chars`, or check `holds`, or neither; go on.

    `following` are the instructions after it; none means that the text matched.
    """

    following: tuple[int, ...]
    chars: CharSet | None = None
    holds: str = ""


class _Writer:
    """Writes nodes from the last to the first: each knows what follows it."""

    def __init__(self) -> None:
        self.steps: list[Step] = [Step(())]

    def add(self, node: Node, following: int) -> int:
        """The number of the first instruction of a node."""
        if isinstance(node, CharSet):
            return self._append(Step((following,), node))
        if isinstance(node, Assertion):
            return self._append(Step((following,), None, node.kind))
        if isinstance(node, Sequence):
            for one in reversed(node.nodes):
                following = self.add(one, following)
            return following
        if isinstance(node, Choice):
            return self._append(Step(tuple(self.add(n, following) for n in node.nodes)))
        return self._repeat(node, following)

    def _repeat(self, node: Repeat, following: int) -> int:
        if node.most is None:
            loop = self._append(Step((following,)))
            self.steps[loop] = Step((self.add(node.node, loop), following))
            after = loop
        else:
            after = following
            for _ in range(node.most - node.least):
                after = self._append(Step((self.add(node.node, after), following)))
        for _ in range(node.least):
            after = self.add(node.node, after)
        return after

    def _append(self, step: Step) -> int:
        if len(self.steps) >= PROGRAM_CAP:
            raise PatternError("the pattern is too large")
        self.steps.append(step)
        return len(self.steps) - 1


def _check_repeats(node: Node, left: int) -> None:
    """Go's rule: repetitions within repetitions come to a thousand at most."""
    if isinstance(node, Repeat):
        times = node.least if node.most is None else node.most
        if times > left:
            raise PatternError("repetitions come to too many")
        _check_repeats(node.node, left // times if times else left)
    elif isinstance(node, (Sequence, Choice)):
        for one in node.nodes:
            _check_repeats(one, left)


def compiled(pattern: str) -> tuple[tuple[Step, ...], int]:
    """The instructions of a pattern and the number of the first; number 0 is success.

    Raises: PatternError with what is wrong.
    """
    if len(pattern) > PATTERN_CAP:
        raise PatternError(f"longer than {PATTERN_CAP} characters")
    node = _Reader(pattern).whole()
    _check_repeats(node, REPEAT_CAP)
    writer = _Writer()
    start = writer.add(node, 0)
    return tuple(writer.steps), start
