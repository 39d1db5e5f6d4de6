"""A part of a profile: compared, sliced, formatted, whoever collected and joined it.

Stands around the answer of the whole profile, which is kept as a capture and exchanged
between workers as it is; a part is cut from its bytes, as pprof would.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from stroboscope._http.messages import JSON, PROFILE, TEXT, Response, refusal
from stroboscope._http.parameters import every, first, without
from stroboscope.endpoints import listing
from stroboscope.endpoints.call import Call
from stroboscope.errors import PatternError, ProfileError, ProfileFormatError
from stroboscope.formats import filters, folded, speedscope, table, text, tree
from stroboscope.formats.filters import Slicer
from stroboscope.formats.pprof import encode, prune
from stroboscope.formats.pprof_reader import decode
from stroboscope.formats.profile import Columns, Profile, subtract
from stroboscope.profiles.breath import Breath

FORMATS = ("pprof", "folded", "speedscope", "json")
TOP_CAP = 1000
PARAMETERS: Mapping[str, str] = {
    **filters.OPTIONS,
    "base": "id of a capture to subtract",
    "format": "pprof, folded, speedscope, or json: a call tree",
    "top": "a table of so many functions, as text, or with format=json",
    "sort": "of the table: flat, or cum",
    "sample_index": "which value text, json and folded show: its name or number",
}
_DISPOSITION = "Content-Disposition"
_FILE = re.compile(r'filename="([a-z-]+)"')
_NUMBER = re.compile(r"[0-9]{1,4}", re.ASCII)


class Wanted(NamedTuple):
    """What was asked of a profile, checked before anything is collected."""

    slicer: Slicer
    format: str
    base: Profile | None
    base_name: str
    top: int
    by_cumulative: bool
    sample_index: str
    breathe: Breath
    #: Go's text form instead, `debug=1`.
    is_text: bool

    @property
    def is_part(self) -> bool:
        """Whether anything but the whole profile is wanted."""
        is_other = self.format != "pprof" or self.base is not None
        return bool(self.slicer) or is_other


def answer(call: Call, whole: Callable[[Call], Response]) -> Response:
    """What was asked for of the profile that `whole` answers with.

    Bad parameters are refused before it is called. Other workers always get the whole.
    """
    if call.is_peer or (call.name and call.desk.evidence.has(call.name)):
        return whole(call)
    try:
        wanted = _wanted(call)
        if not wanted.is_part:
            return whole(call)
        query = without(call.request.query, {*PARAMETERS, "debug"})
        plain = whole(replace(call, request=replace(call.request, query=query)))
        return plain if plain.status != 200 else _part(plain, wanted)
    except (PatternError, _BadParameter) as error:
        return refusal(call.request, 400, " ".join(str(error).split())[:300])


def _part(whole: Response, wanted: Wanted) -> Response:
    name = _name(whole)
    try:
        profile = decode(whole.body, wanted.breathe)
        if wanted.base is not None:
            if _counted(name) != _counted(wanted.base_name):
                raise _BadParameter(f"base: a {wanted.base_name} is no {name}")
            profile = subtract(profile, wanted.base, wanted.breathe)
    except ProfileFormatError:
        raise _BadParameter("this is no profile: it has no slices") from None
    except ProfileError as error:
        raise _BadParameter(f"base: {error}") from None
    sliced = wanted.slicer.apply(profile)
    made = _formatted(name, profile, sliced, wanted)
    for done in (sliced, profile):
        if isinstance(done.samples, Columns):
            done.samples.release(wanted.breathe)
    kept = [header for header in whole.headers if header[0] != _DISPOSITION]
    return replace(made, headers=(*made.headers, *kept))


def _name(answer: Response) -> str:
    """What a profile is called: its file's name."""
    named = _FILE.search(dict(answer.headers).get(_DISPOSITION, ""))
    return named[1] if named else "profile"


def _counted(name: str) -> str:
    """What profiles of this name count; heap and allocs are one in two orders."""
    name = name.removesuffix("-delta")
    return "heap" if name == "allocs" else name


class _BadParameter(ValueError):
    """A parameter is wrong; the message names it and says what is allowed."""


def _wanted(call: Call) -> Wanted:
    query = call.request.query
    given = {name: first(query, name) or "" for name in PARAMETERS}
    pairs = [(name, v) for name in filters.OPTIONS for v in every(query, name)]
    breathe = Breath()
    debug = first(query, "debug") or "0"
    base, base_name = _base(call, given["base"], breathe)
    wanted = Wanted(
        Slicer(pairs, breathe),
        given["format"] or ("" if given["top"] else "pprof"),
        base,
        base_name,
        _top(given["top"]) if given["top"] else 0,
        _one_of("sort", given["sort"] or "flat", ("flat", "cum")) == "cum",
        given["sample_index"],
        breathe,
        debug == "1",
    )
    if wanted.top:
        _one_of("format with top", wanted.format or "json", ("json",))
    else:
        _one_of("format", wanted.format, FORMATS)
    if debug != "0" and (given["format"] or given["top"]):
        raise _BadParameter("debug is a format: not together with format or top")
    if debug != "0" and first(query, "seconds") and wanted.is_part:
        raise _BadParameter("seconds and debug params are incompatible")
    if debug not in ("0", "1") and wanted.is_part:
        raise _BadParameter(f"debug={debug:.9} shows all there is: slice debug=1")
    return wanted


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise _BadParameter(f"{name}: allowed {', '.join(allowed)}")
    return value


def _top(value: str) -> int:
    wanted = int(value) if _NUMBER.fullmatch(value) else 0
    if not 1 <= wanted <= TOP_CAP:
        raise _BadParameter(f"top: allowed 1 to {TOP_CAP}")
    return wanted


def _base(call: Call, name: str, breathe: Breath) -> tuple[Profile | None, str]:
    """The capture to subtract, and what it is called.

    Another worker that has it is asked without our query: it would cut it as well.
    """
    if not name:
        return None, ""
    asks = replace(call, request=replace(call.request, query=""))
    found = listing.found(asks, name)
    if found.status != 200:
        raise _BadParameter("base: no such capture")
    try:
        return decode(found.body, breathe), _name(found)
    except ProfileError:
        raise _BadParameter("base: that capture is no profile") from None


def _index(profile: Profile, wanted: str) -> int:
    """The value to show, found as pprof finds it: by number, by name, or the default."""
    types = [value.type for value in profile.sample_types]
    if _NUMBER.fullmatch(wanted) and int(wanted) < len(types):
        return int(wanted)
    name = wanted or profile.default_sample_type or types[-1]
    if name not in types:
        raise _BadParameter(f"sample_index: allowed {', '.join(types)}")
    return types.index(name)


def _formatted(
    name: str,
    profile: Profile,
    sliced: Profile,
    wanted: Wanted,
) -> Response:
    breathe = wanted.breathe
    index = _index(profile, wanted.sample_index)
    if wanted.is_text:
        return _text(text.counts(name, sliced, breathe=breathe))
    if wanted.top:
        rows = table.functions(
            sliced,
            index,
            total=table.magnitude(profile, index),
            by_cumulative=wanted.by_cumulative,
            breathe=breathe,
        )
        if wanted.format == "json":
            return _text(table.as_json(rows, wanted.top), JSON)
        return _text(table.text(rows, wanted.top))
    pruned = prune(sliced, breathe=breathe)
    if wanted.format == "folded":
        return _text(folded.write(pruned, index, breathe))
    if wanted.format == "speedscope":
        shown = speedscope.write(pruned, name, index, breathe)
        file = _attachment(f"{name}.speedscope.json")
        return replace(_text(shown, JSON), headers=(file,))
    if wanted.format == "json":
        return _text(tree.write(pruned, name, index, breathe), JSON)
    file = _attachment(name)
    return Response(200, encode(pruned, breathe), PROFILE, (file,))


def _text(shown: str, content_type: str = TEXT) -> Response:
    return Response(200, shown.encode("utf-8", "replace"), content_type)


def _attachment(name: str) -> tuple[str, str]:
    return _DISPOSITION, f'attachment; filename="{name}"'
