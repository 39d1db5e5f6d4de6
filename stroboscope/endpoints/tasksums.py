"""What several workers say of their tasks by type, as one document."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from stroboscope.endpoints.parts import OTHER_SHAPE
from stroboscope.tracing.statistics import SLOWEST

Document = dict[str, Any]
_COUNTS = ("alive", "ended", "cut", "errors", "per_second", "time_s")
_QUANTILES = (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99))


def joined(told: Document) -> Document:
    """The join of all `workers` in the place of the own numbers; alone, those it is.

    Sums, shares by time, and quantiles by the histogram: the upper edge of the bucket.
    """
    workers = told.get("workers", {})
    unfit = {pid for pid, one in workers.items() if not _fits(one, told)}
    if unfit:
        said = [f"worker {pid} {OTHER_SHAPE}" for pid in sorted(unfit)]
        fit = {pid: one for pid, one in workers.items() if pid not in unfit}
        told = {**told, "workers": fit, "missing": [*told["missing"], *said]}
    found = [one for one in told.get("workers", {}).values() if one.get("recorder")]
    if not found:
        return told
    return {**told, **_summed(found)}


def _fits(one: Document, own: Document) -> bool:
    """Whether it can be added up: by trying, for its shape has many parts."""
    if not one.get("recorder"):
        return True
    try:
        _summed([one])
        sum(float(one["recorder"][name]) for name in ("seconds", "events", "lost"))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return False
    return bool(one["bounds_s"] == own.get("bounds_s", one["bounds_s"]))


def _summed(found: list[Document]) -> Document:
    by_key: dict[tuple[str, str], list[Document]] = {}
    for one in found:
        for row in one["types"]:
            by_key.setdefault((row["method"], row["name"]), []).append(row)
    bounds_s = found[0]["bounds_s"]
    rows = [_row(rows, bounds_s) for rows in by_key.values()]
    elsewhere = [one["cpu_of_others_s"] for one in found]
    living = [row for one in found for row in one["live"]]
    return {
        "bounds_s": bounds_s,
        "types": sorted(rows, key=lambda row: -row["time_s"]),
        "types_left_out": sum(one["types_left_out"] for one in found),
        "live": sorted(living, key=lambda row: -row["age_s"]),
        "live_left_out": sum(one["live_left_out"] for one in found),
        "cpu_of_others_s": _sum(elsewhere),
        "cpu": found[0]["cpu"],
    }


def _row(rows: list[Document], bounds_s: list[float]) -> Document:
    time_s = sum(row["time_s"] for row in rows)
    errors_s = [row["cpu_error_s"] for row in rows]
    known = None not in errors_s
    slowest = sorted(
        (slow for row in rows for slow in row["slowest"]),
        key=lambda slow: -slow["duration_ms"],
    )
    return {
        "name": rows[0]["name"],
        "method": rows[0]["method"],
        **{name: round(sum(row[name] for row in rows), 6) for name in _COUNTS},
        "latency": _latency([row["latency"] for row in rows], bounds_s),
        "regions": _regions(rows, time_s or 1),
        "unaccounted": _share(((row, row["unaccounted"]) for row in rows), time_s or 1),
        "cpu_s": _sum([row["cpu_s"] for row in rows]),
        "cpu_error_s": round(math.hypot(*errors_s), 4) if known else None,
        "waiting_s": _sum([row["waiting_s"] for row in rows]),
        "slowest": slowest[:SLOWEST],
    }


def _latency(found: list[Document], bounds_s: list[float]) -> Document:
    counts = [sum(column) for column in zip(*(x["counts"] for x in found), strict=True)]
    longest = [one["max_ms"] for one in found if "max_ms" in one]
    if not longest:
        return {"counts": counts}
    max_ms, last = max(longest), sum(counts) - 1
    edges_ms = [*(bound * 1e3 for bound in bounds_s), max_ms]
    quantiles = {}
    for name, share in _QUANTILES:
        below, at = 0, -1
        while below <= round(share * last):
            at += 1
            below += counts[at]
        quantiles[name] = round(min(edges_ms[at], max_ms), 3)
    return {"counts": counts, **quantiles, "max_ms": max_ms}


def _regions(rows: list[Document], time_s: float) -> list[Document]:
    by_name: dict[str, list[tuple[Document, Document]]] = {}
    for row in rows:
        for region in row["regions"]:
            by_name.setdefault(region["name"], []).append((row, region))
    found = [
        {
            "name": name,
            "count": sum(region["count"] for _, region in pairs),
            "failed": sum(region["failed"] for _, region in pairs),
            "share": _share(((row, one["share"]) for row, one in pairs), time_s),
        }
        for name, pairs in by_name.items()
    ]
    return sorted(found, key=lambda one: -one["share"])


def _share(parts: Iterable[tuple[Document, float]], time_s: float) -> float:
    return float(round(sum(row["time_s"] * share for row, share in parts) / time_s, 4))


def _sum(found: list[float | None]) -> float | None:
    known = [one for one in found if one is not None]
    return round(sum(known), 4) if len(known) == len(found) else None
