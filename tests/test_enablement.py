"""A process takes part or does not, decided once, after the fork."""

import os
from typing import Any

import pytest
from asking import KEY, ask_asgi, ask_wsgi, bearer, token

from stroboscope._core import LABELS
from stroboscope.enablement import Enablement, share_of
from stroboscope.errors import SettingsError
from stroboscope.integrations import asgi, wsgi
from stroboscope.settings import Settings


def test_a_fraction_of_processes_takes_part() -> None:
    """By a stable hash of host and process: the same answer, about the right share."""
    shares = [share_of("host", process) for process in range(10_000)]

    assert share_of("host", 7) == shares[7]
    assert sum(share < 0.1 for share in shares) == pytest.approx(1000, abs=120)


@pytest.mark.parametrize(
    ("options", "is_on"),
    [
        ({}, True),
        ({"enable_fraction": 0.0}, False),
        ({"enable_when": "POD_ROLE=canary"}, True),
        ({"enable_when": "POD_ROLE=web"}, False),
        ({"enable_when": lambda: False}, False),
    ],
)
def test_a_process_that_takes_no_part_is_untouched(
    options: dict[str, Any], is_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No surface, no label: the application's own answer, over both carriers."""
    monkeypatch.setenv("POD_ROLE", "canary")
    settings = Settings(keys=(KEY,), service="shop", **options)
    cells: list[bool] = []

    async def plain(scope: Any, receive: Any, send: Any) -> None:
        cells.append(LABELS.get() is not None)
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b"its own"})

    def plain_wsgi(environ: Any, start_response: Any) -> list[bytes]:
        cells.append(LABELS.get() is not None)
        start_response("404 Not Found", [])
        return [b"its own"]

    headers = bearer(token("metrics"))
    for ask, app in (
        (ask_asgi, asgi.Stroboscope(plain, settings)),
        (ask_wsgi, wsgi.Stroboscope(plain_wsgi, settings)),
    ):
        assert (ask("/debug/", headers, app=app).status == 200) is is_on
        ask("/page", app=app)

    assert set(cells) == {is_on}


def test_it_is_decided_once_in_each_process() -> None:
    """A function is asked once, and again in a forked child."""
    asked: list[int] = []

    def decide() -> bool:
        asked.append(os.getpid())
        return True

    enabled = Enablement(Settings(enable_when=decide))
    assert [enabled() for _ in range(3)] == [True] * 3
    enabled._decided_for = -1  # what a child of a fork finds

    assert enabled()
    assert asked == [os.getpid()] * 2


@pytest.mark.parametrize(
    "options", [{"enable_fraction": 1.5}, {"enable_when": "POD_ROLE"}]
)
def test_a_senseless_condition_is_an_error_at_start(options: dict[str, Any]) -> None:
    """Out of range, or no NAME=value."""
    with pytest.raises(SettingsError):
        Settings(**options)
