"""A profile as one call tree, in JSON: who called whom, and what it cost.

A node: `name`, `file`, `line` where the function begins, `self` for its own lines,
`total` with all it called, `children`, dearest first. Written node by node, for a tree
may be deeper than Python's encoder goes.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from stroboscope.formats.profile import Frame, Profile, columns, drain

#: Nodes with a place of their own; deeper calls are summed up in `[truncated]` nodes.
NODES_CAP = 100_000


def _no_breath() -> None:
    pass


class _Tree:
    """Nodes by number, the root first."""

    def __init__(self) -> None:
        self.places = [-1]
        self.own = [0]
        self.totals = [0]
        self.children: list[dict[int, int]] = [{}]

    def child(self, node: int, place: int) -> int:
        known = self.children[node].get(place)
        if known is None:
            known = self.children[node][place] = len(self.places)
            self.places.append(place)
            self.own.append(0)
            self.totals.append(0)
            self.children.append({})
        return known


def write(
    profile: Profile,
    name: str,
    index: int = -1,
    breathe: Callable[[], None] = _no_breath,
) -> str:
    """One value of a profile as a tree below `root`, with its type, unit and total."""
    table = columns(profile.samples, len(profile.sample_types), breathe)
    functions: dict[tuple[str, str, int], int] = {}
    places = [
        functions.setdefault((f.function, f.file, f.start_line), len(functions))
        for f in table.frames
    ]
    cut = functions.setdefault(("[truncated]", "", 0), len(functions))
    tree = _Tree()
    for stack, value in zip(table.stack_of, table.values[index], strict=True):
        breathe()
        if value:
            _add(tree, [places[at] for at in reversed(table.stacks[stack])], value, cut)
    kind = profile.sample_types[index]
    head = {
        "profile": name,
        "type": kind.type,
        "unit": kind.unit,
        "total": tree.totals[0],
        "time_ns": profile.time_ns,
        "duration_ns": profile.duration_ns,
        "comments": list(profile.comments),
    }
    shown = [Frame(file, function, line, line) for function, file, line in functions]
    text = _written(tree, shown, breathe)
    drain(tree.children, breathe)
    return f'{json.dumps(head)[:-1]}, "root": {text}}}\n'


def _add(tree: _Tree, path: list[int], value: int, cut: int) -> None:
    node = 0
    tree.totals[0] += value
    for place in path:
        is_full = len(tree.places) >= NODES_CAP
        if is_full and place not in tree.children[node]:
            node = tree.child(node, cut)
            tree.totals[node] += value
            break
        node = tree.child(node, place)
        tree.totals[node] += value
    tree.own[node] += value


def _written(tree: _Tree, frames: list[Frame], breathe: Callable[[], None]) -> str:
    out: list[str] = []
    left: list[int | str] = [0]
    while left:
        node = left.pop()
        if isinstance(node, str):
            out.append(node)
            continue
        breathe()
        place = tree.places[node]
        frame = frames[place] if place >= 0 else Frame("", "root", 0, 0)
        shown: dict[str, str | int] = {"name": frame.function or "<unknown>"}
        if frame.file:
            shown |= {"file": frame.file, "line": frame.start_line}
        shown |= {"self": tree.own[node], "total": tree.totals[node]}
        out.append(f'{json.dumps(shown)[:-1]}, "children": [')
        totals = tree.totals
        order = sorted(tree.children[node].values(), key=lambda n: -abs(totals[n]))
        left.append("]}")
        for at, child in enumerate(reversed(order)):
            left += [child] if at == len(order) - 1 else [child, ","]
    return "".join(out)
