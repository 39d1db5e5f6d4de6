"""A pytest plugin that looks for secrets in everything the surface says.

    pytest_plugins = ["stroboscope.testing"]          # in conftest.py

    def test_debug_leaks_nothing(stroboscope_leaks):
        assert stroboscope_leaks(app) == []

It plants a secret in argv, the environment, a local variable, a thread's name, headers,
a path, a query, a tenant and an exception, sends requests that carry them, calls every
endpoint and searches every byte, gunzipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stroboscope.testing.canaries import Leak, leaks, planted

__all__ = ["Leak", "leaks", "planted", "stroboscope_leaks"]


@pytest.fixture
def stroboscope_leaks() -> Iterator[Callable[..., list[Leak]]]:
    """Call it with an ASGI or WSGI application that carries a surface.

    Its surface is found by `token`, or by STROBOSCOPE_KEYS and STROBOSCOPE_SERVICE in
    the environment. Returns what leaked, which should be nothing.
    """
    with planted() as secret:

        def search(app: Any, **options: Any) -> list[Leak]:
            return leaks(app, secret, **options)

        yield search
