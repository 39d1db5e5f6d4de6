"""Names that the application gives: to threads, tasks, loggers.

One that is no plain name may hold anything, a secret too: it is not shown.
"""

from __future__ import annotations

import re

_PLAIN = re.compile(r"[A-Za-z0-9_.:() -]{1,64}")


def plain(name: str, otherwise: str) -> str:
    """The name, if it is one; else what it is the name of."""
    return name if _PLAIN.fullmatch(name) else otherwise
