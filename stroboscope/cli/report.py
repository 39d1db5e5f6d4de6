"""What a profile says by the values of a label."""

from __future__ import annotations

from collections import Counter

from stroboscope.errors import ProfileError
from stroboscope.formats.measures import measured, share
from stroboscope.formats.profile import Profile


def check_keys(profile: Profile, conditions: list[str]) -> None:
    """Refuse `key=regex` with a key that no sample has: it is a slip of the pen.

    Raises: ProfileError, with the keys there are.
    """
    known = {key for sample in profile.samples for key, _ in sample.labels}
    for text in conditions:
        key, equals, _ = text.partition("=")
        if profile.samples and equals and key and key not in known:
            raise ProfileError(f"no label {key!r}; labels here: {sorted(known)}")


def by_label(profile: Profile, key: str) -> str:
    """What the profile is about, or its last value, by the values of a label.

    Raises: ProfileError for no such key.
    """
    types = [one.type for one in profile.sample_types]
    default = profile.default_sample_type
    at = types.index(default) if default in types else -1
    sums: Counter[str] = Counter()
    for sample in profile.samples:
        sums[dict(sample.labels).get(key, "")] += sample.values[at]
    if set(sums) == {""}:
        raise ProfileError(f"no label {key!r} in this profile")
    total, unit = sums.total(), profile.sample_types[at].unit
    lines = [f"{'value':>10} {'share':>7}  {key}"]
    lines += [
        f"{measured(value, unit):>10} {share(value, total):>7}  {name or '(none)'}"
        for name, value in sums.most_common()
    ]
    return "\n".join(lines)
