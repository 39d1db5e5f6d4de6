"""Amounts as people read them: 1.5s, 20MB. Source: google/pprof internal/measurement."""

from __future__ import annotations

_TIMES = (("hrs", 3600e9), ("s", 1e9), ("ms", 1e6), ("us", 1e3), ("ns", 1.0))
_SIZES = tuple(
    (unit, 1024.0**at) for at, unit in enumerate(("B", "kB", "MB", "GB", "TB"))
)
_SCALES = {"nanoseconds": _TIMES, "bytes": _SIZES[::-1]}


def measured(value: int, unit: str) -> str:
    """A value of a profile in the largest unit of which it has at least one."""
    scale = _SCALES.get(unit)
    if scale is None or not value:
        return str(value)
    name, factor = next((s for s in scale if abs(value) >= s[1]), scale[-1])
    text = f"{value / factor:.2f}".rstrip("0").rstrip(".")
    return text + name


def share(value: int, total: int) -> str:
    """A percentage."""
    return f"{100 * value / total:.2f}%" if total else "0%"
