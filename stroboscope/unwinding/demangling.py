"""C++ and Rust names as their authors wrote them, where libstdc++ is there to tell."""

from __future__ import annotations

import ctypes
from functools import cache

NAME_CAP = 512


@cache
def _library() -> ctypes.CDLL | None:
    try:
        found = ctypes.CDLL("libstdc++.so.6")
        found.__cxa_demangle.restype = ctypes.c_void_p
    except (OSError, AttributeError):
        return None
    return found


def demangled(name: str) -> str:
    """The name to show, cut at `NAME_CAP`. Source: Itanium C++ ABI, section 3.4."""
    library = _library() if name.startswith("_Z") else None
    if library is None:
        return name[:NAME_CAP]
    status = ctypes.c_int()
    made = library.__cxa_demangle(name.encode(), None, None, ctypes.byref(status))
    if not made or status.value:
        return name[:NAME_CAP]
    shown = ctypes.string_at(made).decode("utf-8", "replace")
    ctypes.CDLL(None).free(ctypes.c_void_p(made))
    return shown[:NAME_CAP]
