"""Classes of characters in regular expressions: ranges and Unicode categories.

Source: pkg.go.dev/regexp/syntax.
"""

from __future__ import annotations

import unicodedata
from typing import NamedTuple

LAST = 0x10FFFF
Range = tuple[int, int]

_DIGIT = ((48, 57),)
_WORD = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE = ((9, 10), (12, 13), (32, 32))
PERL = {"d": _DIGIT, "s": _SPACE, "w": _WORD}
POSIX: dict[str, tuple[Range, ...]] = {
    "alnum": ((48, 57), (65, 90), (97, 122)),
    "alpha": ((65, 90), (97, 122)),
    "ascii": ((0, 127),),
    "blank": ((9, 9), (32, 32)),
    "cntrl": ((0, 31), (127, 127)),
    "digit": _DIGIT,
    "graph": ((33, 126),),
    "lower": ((97, 122),),
    "print": ((32, 126),),
    "punct": ((33, 47), (58, 64), (91, 96), (123, 126)),
    "space": ((9, 13), (32, 32)),
    "upper": ((65, 90),),
    "word": _WORD,
    "xdigit": ((48, 57), (65, 70), (97, 102)),
}
CATEGORIES = frozenset(["C", "L", "M", "N", "P", "S", "Z", "Any"]).union(
    [
        "Cc",
        "Cf",
        "Co",
        "Cs",
        "Ll",
        "Lm",
        "Lo",
        "Lt",
        "Lu",
        "Mc",
        "Me",
        "Mn",
        "Nd",
        "Nl",
        "No",
        "Pc",
        "Pd",
        "Pe",
        "Pf",
        "Pi",
        "Po",
        "Ps",
        "Sc",
        "Sk",
        "Sm",
        "So",
        "Zl",
        "Zp",
        "Zs",
    ]
)
#: Letters that fold to a third one, which neither `upper` nor `lower` gives.
_THIRD = {"k": "\u212a", "K": "\u212a", "s": "\u017f", "S": "\u017f"}


class CharSet(NamedTuple):
    """Characters: ranges of code points, and Unicode categories or what is not in them."""

    ranges: tuple[Range, ...]
    categories: tuple[tuple[str, bool], ...] = ()
    is_negated: bool = False
    folds_case: bool = False

    def has(self, char: str) -> bool:
        """Whether a character is one of these."""
        found = self._has(char)
        if not found and self.folds_case:
            others = {char.lower(), char.upper(), _THIRD.get(char, char)}
            found = any(len(other) == 1 and self._has(other) for other in others)
        return found is not self.is_negated

    def _has(self, char: str) -> bool:
        code = ord(char)
        if any(low <= code <= high for low, high in self.ranges):
            return True
        category = unicodedata.category(char)
        return any(
            (name == "Any" or category.startswith(name)) is is_in
            for name, is_in in self.categories
        )


def inverted(ranges: tuple[Range, ...]) -> tuple[Range, ...]:
    """Every other character."""
    out = []
    begin = 0
    for low, high in sorted(ranges):
        if begin < low:
            out.append((begin, low - 1))
        begin = high + 1
    return (*out, (begin, LAST))
