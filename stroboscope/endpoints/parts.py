"""Join what several workers answered: profiles, metrics, JSON and text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from stroboscope._http.messages import JSON, PROFILE
from stroboscope._http.parameters import first
from stroboscope.endpoints.call import Call
from stroboscope.errors import ProfileError
from stroboscope.formats import prometheus
from stroboscope.formats.pprof import encode, prune
from stroboscope.formats.pprof_reader import decode
from stroboscope.formats.profile import Profile, Sample, columns, merge
from stroboscope.profiles.breath import Breath
from stroboscope.workers.totals import Total

#: What is said of a worker whose answer we do not understand.
OTHER_SHAPE = "answered as another version does"
#: A sample of a metric, as Prometheus' text format has it.
_SAMPLE = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*(\{.*\})? +\S+( +\S+)?")


class Part(NamedTuple):
    """What one worker answered."""

    process: int
    body: bytes
    content_type: str
    #: Which process of that number, where it counts since its beginning.
    instance: str = ""


def join(
    call: Call,
    kind: str,
    parts: list[Part],
    failed: list[str],
    notes: list[str],
    totals: Sequence[Total] = (),
) -> bytes:
    """One body of all parts, and of the totals of those who did not answer.

    Who cannot be joined moves from `parts` to `failed`.
    """
    for part in [part for part in parts if part.content_type != kind]:
        parts.remove(part)
        failed.append(f"worker {part.process} answered {part.content_type:.40}")
    if kind == PROFILE:
        return _profile(call, parts, failed, notes, totals)
    if kind == JSON:
        return _json(parts, failed)
    if kind == prometheus.CONTENT_TYPE:
        return _metrics(parts)
    return _text(parts, [*failed, *notes])


def _profile(
    call: Call,
    parts: list[Part],
    failed: list[str],
    notes: list[str],
    totals: Sequence[Total],
) -> bytes:
    is_flat = first(call.request.query, "merge") == "flat"
    breathe = Breath()
    profiles: list[Profile] = []
    for part in _own_first(parts):
        try:
            profile = decode(part.body, breathe)
            if profiles and profile.sample_types != profiles[0].sample_types:
                raise ProfileError("it counts other things")
        except ProfileError as error:  # another version's
            parts.remove(part)
            failed.append(f"worker {part.process} cannot be merged: {error}")
            continue
        profiles.append(_labelled(profile, "" if is_flat else str(part.process)))
    said = [f"workers: {len(parts)}/{len(parts) + len(failed)}", *failed, *notes]
    if totals:
        owners = ", ".join(one.owner for one in totals)
        said.append(f"totals as last written down by workers: {owners}")
    whole = merge([*profiles, *_last(totals, profiles[0], is_flat=is_flat)], breathe)
    if whole.duration_ns:
        begun = [profile.time_ns for profile in profiles]
        said.append(f"workers began within {(max(begun) - min(begun)) / 1e6:.0f} ms")
    whole = prune(
        replace(whole, comments=(*whole.comments, *said)),
        breathe=breathe,
    )
    table = columns(whole.samples, len(whole.sample_types))
    call.desk.remember_symbols(table.frames)
    return encode(replace(whole, samples=table), breathe)


def _last(totals: Sequence[Total], own: Profile, *, is_flat: bool) -> Iterator[Profile]:
    for one in totals:
        if one.profile.sample_types == own.sample_types:
            last = replace(one.profile, comments=(), time_ns=own.time_ns)
            yield _labelled(last, "" if is_flat else one.owner)


def _labelled(profile: Profile, process: str) -> Profile:
    if not process:
        return profile
    pid = ("pid", process)
    samples = [
        Sample(stack, values, (*labels, pid))
        for stack, values, labels in profile.samples
    ]
    return replace(profile, samples=samples)


def _json(parts: list[Part], failed: list[str]) -> bytes:
    """Lists become one, each entry with its `pid`.

    To the first object, our own where we are a worker, comes `workers`: everybody's.
    """
    found: dict[int, Any] = {}
    kind: type | None = None
    for part in _own_first(parts):
        value = read_json(part)
        if value is None or (kind is not None and not isinstance(value, kind)):
            parts.remove(part)
            failed.append(f"worker {part.process} {OTHER_SHAPE}")
            continue
        kind = kind or type(value)
        found[part.process] = value
    joined: object
    if kind is list:
        joined = _once(
            {"pid": part.process, **entry}
            for part in parts
            for entry in found[part.process]
        )
    else:
        own: dict[str, Any] = next(iter(found.values()), {})
        joined = {**own, "workers": dict(sorted(found.items())), "missing": failed}
    return json.dumps(joined, indent=1).encode() + b"\n"


def read_json(part: Part) -> dict[str, Any] | list[dict[str, Any]] | None:
    """An object, or a list of them; None for what a version that we know never says."""
    try:
        value = json.loads(part.body)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return value
    return value if isinstance(value, dict) else None


def read_object(part: Part) -> dict[str, Any] | None:
    """The same where it has to be one object."""
    value = read_json(part)
    return value if isinstance(value, dict) else None


def _own_first(parts: list[Part]) -> list[Part]:
    """Ours is the version whose shape the others must have."""
    return sorted(parts, key=lambda part: part.process != os.getpid())


def _once(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What several workers list under the same `id` is one, the first's."""
    by_id = {entry.get("id", number): entry for number, entry in enumerate(entries)}
    return [*by_id.values()]


def _text(parts: list[Part], notes: list[str]) -> bytes:
    sections = [b"=== worker %d ===\n%s" % part[:2] for part in parts]
    sections += [f"=== {note} ===\n".encode() for note in notes]
    return b"\n".join(sections)


def _metrics(parts: list[Part]) -> bytes:
    """Families in the order of the first; each value with its worker's `pid`."""
    heads: dict[str, list[str]] = {}
    values: dict[str, list[str]] = {}
    for part in parts:
        name = ""
        for line in part.body.decode("utf-8", "replace").splitlines():
            if line.startswith("# "):
                name = [*line.split(" ", 3), "", ""][2]
                kept = heads.setdefault(name, []) if name else []
                if len(kept) < 2:
                    kept.append(line)
            elif name and _SAMPLE.fullmatch(line):
                values.setdefault(name, []).append(_with_pid(line, part.process))
    lines = [line for name in heads for line in (*heads[name], *values.get(name, ()))]
    return ("\n".join(lines) + "\n").encode()


def _with_pid(line: str, process: int) -> str:
    name, brace, rest = line.partition("{")
    if brace:
        return f'{name}{{pid="{process}",{rest}'
    name, _, value = line.partition(" ")
    return f'{name}{{pid="{process}"}} {value}'
