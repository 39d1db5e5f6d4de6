"""Tables of a profile, with pprof's own meaning of focus and ignore."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from stroboscope.errors import ProfileError
from stroboscope.formats.profile import Profile, Sample

Condition = tuple[str, re.Pattern[str]]


def condition(text: str) -> Condition:
    """`key=regex`, or `key=text` where the text is no regex, such as `/items/{id}`.

    Raises: ProfileError.
    """
    key, equals, pattern = text.partition("=")
    if not equals or not key:
        raise ProfileError(f"{text!r} is not KEY=REGEX")
    try:
        return key, re.compile(pattern)
    except re.error:
        return key, re.compile(re.escape(pattern))


def sliced(
    profile: Profile, focus: list[Condition], ignore: list[Condition]
) -> Profile:
    """Samples that meet every focus and no ignore.

    Raises: ProfileError for a key that no sample has.
    """
    known = {key for sample in profile.samples for key, _ in sample.labels}
    for key, _ in (*focus, *ignore):
        if profile.samples and key not in known:
            raise ProfileError(f"no label {key!r}; labels here: {sorted(known)}")
    kept = [
        sample
        for sample in profile.samples
        if all(_meets(sample, one) for one in focus)
        and not any(_meets(sample, one) for one in ignore)
    ]
    return replace(profile, samples=kept)


def _meets(sample: Sample, wanted: Condition) -> bool:
    key, pattern = wanted
    return any(k == key and pattern.search(v) for k, v in sample.labels)


def top(profile: Profile, rows: int, *, by_cumulative: bool = False) -> str:
    """Functions by their own and cumulative share of the last value."""
    flat: Counter[str] = Counter()
    cumulative: Counter[str] = Counter()
    for stack, values, _ in profile.samples:
        if stack:
            flat[stack[0].function] += values[-1]
        for name in {frame.function for frame in stack}:
            cumulative[name] += values[-1]
    total = sum(sample.values[-1] for sample in profile.samples)
    order = cumulative if by_cumulative else flat
    names = sorted(cumulative, key=lambda n: (-order[n], -cumulative[n], n))[:rows]
    lines = [
        f"Total {_amount(profile, total)}",
        f"{'flat':>10} {'flat%':>7} {'cum':>10} {'cum%':>7}  function",
    ]
    lines += [
        f"{_amount(profile, flat[n]):>10} {_share(flat[n], total):>7} "
        f"{_amount(profile, cumulative[n]):>10} {_share(cumulative[n], total):>7}  {n}"
        for n in names
    ]
    return "\n".join(lines)


def by_label(profile: Profile, key: str) -> str:
    """The last value by the values of a label. Raises: ProfileError for no such key."""
    sums: Counter[str] = Counter()
    for sample in profile.samples:
        sums[dict(sample.labels).get(key, "")] += sample.values[-1]
    if set(sums) == {""}:
        raise ProfileError(f"no label {key!r} in this profile")
    total = sums.total()
    lines = [f"{'value':>10} {'share':>7}  {key}"]
    lines += [
        f"{_amount(profile, value):>10} {_share(value, total):>7}  {name or '(none)'}"
        for name, value in sums.most_common()
    ]
    return "\n".join(lines)


def _amount(profile: Profile, value: int) -> str:
    if profile.sample_types[-1].unit == "nanoseconds":
        return f"{value / 1e9:.2f}s"
    return str(value)


def _share(value: int, total: int) -> str:
    return f"{100 * value / total:.1f}%" if total else "-"
