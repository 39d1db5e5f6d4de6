"""Prometheus' text format, version 0.0.4. Source: prometheus.io, "Exposition formats"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


Values = tuple[tuple[Mapping[str, str], float], ...]


@dataclass(frozen=True, slots=True)
class Family:
    """A metric: its name, `counter` or `gauge`, what it says, values by labels.

    A `histogram` has a suffix for its values and more values by suffix.
    """

    name: str
    kind: str
    help: str
    values: Values
    suffix: str = ""
    more: tuple[tuple[str, Values], ...] = ()


def one(name: str, kind: str, text: str, value: float) -> Family:
    """A metric without labels."""
    return Family(name, kind, text, (({}, value),))


def render(families: Iterable[Family]) -> str:
    """The exposition; families in the order given."""
    lines = []
    for family in families:
        lines.append(f"# HELP {family.name} {family.help}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for suffix, values in ((family.suffix, family.values), *family.more):
            name = family.name + suffix
            lines += [
                f"{name}{_shown(labels)} {value:.17g}" for labels, value in values
            ]
    return "\n".join(lines) + "\n"


def _shown(labels: Mapping[str, str]) -> str:
    inner = ",".join(f'{k}="{v.translate(_ESCAPES)}"' for k, v in labels.items())
    return f"{{{inner}}}" if inner else ""
