"""Label sets: immutable, interned, bounded in number.

A set lives as long as somebody holds it: a request, an open window, a profile. Sets
nobody holds are forgotten, so the cap is on sets alive at once.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary

from stroboscope._threads import Lock
from stroboscope.errors import LabelError
from stroboscope.settings import LABEL_SETS_CAP

#: Bytes of UTF-8. Pyroscope takes 2048, but a label is a bucket, not a message.
VALUE_BYTES_CAP = 128
#: Source: what Pyroscope and Prometheus accept, plus dots.
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}")

Items = tuple[tuple[str, str], ...]


class LabelSet:
    """An immutable set of `key=value`, equal only to itself because interned.

    Make one with `label_set`. Iterates over its (key, value) pairs, sorted by key.
    """

    __slots__ = ("__weakref__", "_map", "id", "items")

    def __init__(self, items: Items, number: int) -> None:
        self.items: Items = items
        self.id = number
        self._map = dict(items)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __contains__(self, key: object) -> bool:
        return key in self._map

    def __getitem__(self, key: str) -> str:
        return self._map[key]

    def get(self, key: str, default: str | None = None) -> str | None:
        """The value of a key, or `default`."""
        return self._map.get(key, default)

    def __repr__(self) -> str:
        inner = ", ".join(f"{key}={value!r}" for key, value in self.items)
        return f"LabelSet({inner})"


class SpannedLabels(LabelSet):
    """A request's labels, and which span of OpenTelemetry it is: 16 digits.

    Not interned, for each request has another one. For samples of time alone; whoever
    does not ask for the span gets the labels, and nothing of it.
    """

    __slots__ = ("span_id",)

    def __init__(self, labels: LabelSet, span_id: str) -> None:
        super().__init__(labels.items, labels.id)
        self.span_id = span_id


def span_of(chain: Iterable[object]) -> str:
    """The span of overlays, root first; empty where nobody asked for spans."""
    return next((one.span_id for one in chain if isinstance(one, SpannedLabels)), "")


@dataclass(frozen=True, slots=True)
class Removal:
    """An overlay that takes keys away from what the overlays above it give."""

    keys: frozenset[str]


@functools.lru_cache(512)
def removal(keys: frozenset[str]) -> Removal:
    """The one removal of these keys: blocks of equal removals are told by identity."""
    return Removal(keys)


Overlay = LabelSet | Removal


@dataclass(frozen=True, slots=True)
class LabelStats:
    """What the table holds and what it had to refuse, since the process began."""

    alive: int
    cap: int
    made: int
    overflowed: int
    truncated: int
    failed: int
    sets: tuple[LabelSet, ...]


#: The share of the sets that may be alive which the table itself keeps.
RECENT_SHARE = 8


class LabelTable:
    """Interns label sets; safe from any thread."""

    def __init__(self, cap: int = LABEL_SETS_CAP) -> None:
        self.cap = cap
        self._sets: WeakValueDictionary[Items, LabelSet] = WeakValueDictionary()
        #: Sets kept though nobody may have them, by what their maker calls them.
        self._recent: dict[object, LabelSet] = {}
        self._numbers = itertools.count()
        self._lock = Lock()
        self._made = self._overflowed = self._truncated = self._failed = 0
        self.empty = self._make(())
        self.overflow = self._make((("endpoint", "(overflow)"),))

    def configure(self, cap: int, prefix: str) -> None:
        """Bound the sets alive from now on; sets beyond the new cap live on.

        `prefix` goes before the key of `overflow`, as before all request labels.
        """
        with self._lock:
            self.cap, self._recent = cap, {}
            items = ((prefix + "endpoint", "(overflow)"),)
            self.overflow = self._sets.get(items) or self._make(items)

    def count_failure(self) -> None:
        """Note that labels are missing for a reason of ours or the user's."""
        self._failed += 1

    def intern(self, labels: Mapping[str, str]) -> LabelSet:
        """The set of these labels, or `overflow` when too many sets are alive.

        Raises: LabelError for a key or value out of bounds.
        """
        for key, value in labels.items():
            check_key(key)
            check_value(key, value)
        return self._intern(tuple(sorted(labels.items())))

    def intern_leniently(self, labels: Mapping[str, str]) -> LabelSet:
        """The same at request time: long values are cut and counted, bad keys go."""
        items = []
        for key, value in labels.items():
            if _KEY.fullmatch(key) and isinstance(value, str):
                items.append((key, self._cut(value)))
        return self._intern(tuple(sorted(items)))

    def merge(self, chain: Iterable[object]) -> LabelSet:
        """One set from overlays, root first; later keys win, removals take away.

        What is no overlay counts for nothing. `overflow` when too many sets are alive.
        """
        items: Items = ()
        for part in chain:
            items = extend(items, part)
        return self._intern(items)

    def remember(self, name: object, labels: LabelSet) -> None:
        """Keep a set that is likely to be wanted again; `recall(name)` has it for a time.

        At most one in `RECENT_SHARE` of the sets that may be alive is kept so.
        """
        with self._lock:
            if len(self._recent) >= self.cap // RECENT_SHARE:
                self._recent.clear()
            if self.cap >= RECENT_SHARE:
                self._recent[name] = labels

    def recall(self, name: object) -> LabelSet | None:
        """What was remembered under this name, if it is still kept."""
        return self._recent.get(name)

    def stats(self) -> LabelStats:
        """Count what is there now."""
        alive = tuple(self._sets.values())
        return LabelStats(
            alive=len(alive),
            cap=self.cap,
            made=self._made,
            overflowed=self._overflowed,
            truncated=self._truncated,
            failed=self._failed,
            sets=alive,
        )

    def _intern(self, items: Items) -> LabelSet:
        found = self._sets.get(items)
        if found is not None:
            return found
        with self._lock:
            found = self._sets.get(items)
            if found is not None:
                return found
            if len(self._sets) >= self.cap + 2:  # the two permanent sets are free
                self._overflowed += 1
                return self.overflow
            return self._make(items)

    def _make(self, items: Items) -> LabelSet:
        made = LabelSet(items, next(self._numbers))
        self._sets[items] = made
        self._made += 1
        return made

    def _cut(self, value: str) -> str:
        encoded = value.encode("utf-8", "replace")
        if len(encoded) > VALUE_BYTES_CAP:
            self._truncated += 1
            encoded = encoded[:VALUE_BYTES_CAP]
        return encoded.decode("utf-8", "ignore")


def check_key(key: object) -> None:
    """Raises: LabelError for a key that profile stores would refuse."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise LabelError(
            f"label key {key!r:.80}; allowed: letters, digits, '_' and '.', "
            "not starting with a digit or '.', at most 128"
        )


def check_value(key: str, value: object) -> None:
    """Raises: LabelError for a value that is no string of at most 128 bytes."""
    if not isinstance(value, str):
        raise LabelError(f"label {key} is {type(value).__name__}; allowed: str")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise LabelError(f"label {key} is not valid Unicode") from error
    if size > VALUE_BYTES_CAP:
        raise LabelError(
            f"label {key} has {size} bytes; allowed: at most {VALUE_BYTES_CAP}"
        )


def extend(items: Items, overlay: object) -> Items:
    """The items that a block of `overlay` has inside one of `items`.

    What is no overlay changes nothing. Interns nothing: for keepers of totals, who
    have their own bound and must not use up the one of sets alive.
    """
    if isinstance(overlay, LabelSet):
        if not items:
            return overlay.items
        return tuple(sorted({**dict(items), **dict(overlay.items)}.items()))
    if isinstance(overlay, Removal):
        return tuple(item for item in items if item[0] not in overlay.keys)
    return items


TABLE = LabelTable()


def label_set(labels: Mapping[str, str]) -> LabelSet:
    """The interned set of these labels.

    Raises: LabelError for a key or value out of bounds.
    """
    return TABLE.intern(labels)
