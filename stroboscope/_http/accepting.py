"""Which form of an answer its client takes.

Source: RFC 9110, section 12.5.1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stroboscope._http.messages import JSON, PROBLEM, Request

#: More ranges than any client sends are not read.
RANGES_CAP = 32
_QUALITY = re.compile(r";\s*q\s*=\s*([01]?(?:\.[0-9]{0,3})?)\s*(?:;|$)", re.I)
#: A quality, how closely the range names the kind, and minus its place in the list.
_Rank = tuple[float, int, int]


def choose(request: Request, kinds: Sequence[str]) -> str | None:
    """Which of these content types, best first, to answer in; None for none of them.

    The first where the client names none, or has no `Accept` at all. Who asks for
    problem+json means errors by it, and takes JSON.
    """
    text = ",".join(request.all("accept"))
    ranges = [one.strip() for one in text.split(",", RANGES_CAP)[:RANGES_CAP]]
    ranked = [_rank(kind, [one for one in ranges if one]) for kind in kinds]
    best = max(ranked)
    return kinds[ranked.index(best)] if best[0] > 0 else None


def _rank(kind: str, ranges: list[str]) -> _Rank:
    """By the range that names it most closely: that one's quality holds."""
    if not ranges:
        return (1.0, 0, 0)
    name = kind.partition(";")[0]
    family = name.partition("/")[0] + "/*"
    closeness = {name: 3, family: 1, "*/*": 0, "*": 0}
    if name == JSON:
        closeness[PROBLEM] = 2
    found: list[tuple[int, int, float]] = []
    for place, one in enumerate(ranges):
        how = closeness.get(one.partition(";")[0].strip().lower())
        if how is not None:
            found.append((how, -place, _quality(one)))
    if not found:
        return (0.0, 0, 0)
    how, place, quality = max(found)
    return (quality, how, place)


def _quality(one: str) -> float:
    """1 where there is none to be read."""
    found = _QUALITY.search(one)
    return min(float(found[1] or "1"), 1.0) if found and found[1] != "." else 1.0
