"""Artefacts kept for share links: few, bounded, gone when their link runs out."""

from __future__ import annotations

import threading
from collections import OrderedDict

from stroboscope._clock import SYSTEM, Clock
from stroboscope._http.messages import Response

ARTEFACTS_CAP = 16
ARTEFACT_BYTES_CAP = 64 << 20


class Artefacts:
    """Answers by the id of their link. Safe from any thread."""

    def __init__(self, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        #: id: (end in seconds since 1970, answer); oldest first
        self._kept: OrderedDict[str, tuple[float, Response]] = OrderedDict()

    def keep(self, name: str, answer: Response, expires_s: float) -> None:
        """Keep an answer; the oldest go where it would be too many or too much."""
        with self._lock:
            self._kept[name] = (expires_s, answer)
            self._trim()

    def get(self, name: str) -> Response | None:
        """The answer, or None when it is gone."""
        with self._lock:
            self._trim()
            found = self._kept.get(name)
        return None if found is None else found[1]

    def __len__(self) -> int:
        return len(self._kept)

    def _trim(self) -> None:
        now_s = self._clock.time_s()
        for name in [n for n, (ends_s, _) in self._kept.items() if ends_s <= now_s]:
            del self._kept[name]
        while self._kept and (
            len(self._kept) > ARTEFACTS_CAP
            or sum(len(r.body) for _, r in self._kept.values()) > ARTEFACT_BYTES_CAP
        ):
            self._kept.popitem(last=False)
