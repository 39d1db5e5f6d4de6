"""Whether this process takes part: a canary costs less than a fleet.

Decided once per process, after the fork, from what does not change while it lives.
"""

from __future__ import annotations

import hashlib
import os
import socket

from stroboscope.settings import Settings


class Enablement:
    """Call it: true when this process takes part. Cheap after the first time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._decided_for = 0
        self._on = False

    def __call__(self) -> bool:
        """Whether this process takes part. Raises what `enable_when` raises, once."""
        process = os.getpid()
        if self._decided_for != process:
            self._decided_for = process
            self._on = False
            self._on = self._decide(process)
        return self._on

    def _decide(self, process: int) -> bool:
        when = self._settings.enable_when
        if callable(when):
            if not when():
                return False
        elif when:
            name, _, wanted = when.partition("=")
            if os.environ.get(name) != wanted:
                return False
        return share_of(socket.gethostname(), process) < self._settings.enable_fraction


def share_of(host: str, process: int) -> float:
    """A number in [0, 1), the same for the same host and process."""
    digest = hashlib.blake2b(f"{host}/{process}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
