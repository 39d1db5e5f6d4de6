"""What is switched at run time, by whom, and that it switches itself back."""

import gzip
import json
import logging
import time
from typing import Any

import pytest
from asking import (
    GETS,
    SETTINGS,
    Ask,
    admin,
    asgi_inner,
    ask_asgi,
    bearer,
    token,
)

from stroboscope.integrations import asgi


@pytest.mark.parametrize("path", GETS)
def test_h16_get_changes_nothing(ask: Ask, path: str) -> None:
    """After GET, HEAD and OPTIONS on every route the knobs are what they were."""
    surface = asgi.Stroboscope(asgi_inner, SETTINGS)
    assert surface.surface is not None
    desk = surface.surface.desk

    def state() -> list[object]:
        revocations = desk.gate.revocations
        return [
            desk.knobs.describe(),
            desk.knobs.version,
            len(revocations),
            revocations.not_before_s,
            len(desk.openings),
            [logging.getLogger(name).level for name in ("", "stroboscope")],
        ]

    before = state()
    for method in ("GET", "HEAD", "OPTIONS"):
        ask_asgi(f"/debug{path}?seconds=0.05", admin(), method, app=surface)

    assert state() == before
    assert ask("/debug/revoke", admin()).status == 405


def test_h16_changes_need_json(ask: Ask) -> None:
    """A form cannot send it: 415; nor may the body be compressed."""
    body = json.dumps({"cpu_hz": 50}).encode()
    form = bearer(token("admin")) | {"Content-Type": "text/plain"}
    assert ask("/debug/settings", form, "PUT", body=body).status == 415
    squeezed = admin() | {"Content-Encoding": "gzip"}
    assert (
        ask("/debug/settings", squeezed, "PUT", body=gzip.compress(body)).status == 415
    )


def test_h33_settings_return_by_themselves(caplog: pytest.LogCaptureFixture) -> None:
    """An override ends after its ttl, whoever asks or not, and the log says so."""
    surface = asgi.Stroboscope(asgi_inner, SETTINGS)
    logger = logging.getLogger("a.logger.of.the.application")
    logger.setLevel(logging.ERROR)
    levels = {"log_levels": {logger.name: "DEBUG"}, "cpu_hz": 20, "ttl": "1s"}
    answer = ask_asgi(
        "/debug/settings", admin(), "PUT", body=json.dumps(levels).encode(), app=surface
    )
    shown = json.loads(answer.body)["settings"]["cpu_hz"]

    assert answer.status == 200
    assert (shown["value"], shown["baseline"], shown["overridden"]) == (20, 100, True)
    assert 0 < shown["expires_in"] <= 1
    assert logger.level == logging.DEBUG
    deadline = time.monotonic() + 5
    while logger.level != logging.ERROR and time.monotonic() < deadline:
        time.sleep(0.05)
    assert logger.level == logging.ERROR
    assert "cpu_hz is back at its baseline" in caplog.text


def test_h33_lost_updates_are_refused() -> None:
    """`If-Match` with an old version: 409; a preset sets all it names."""
    surface = asgi.Stroboscope(asgi_inner, SETTINGS)

    def put(body: dict[str, Any], *match: str) -> Any:
        headers = admin() | dict.fromkeys(["If-Match"][: len(match)], "".join(match))
        data = json.dumps(body).encode()
        return ask_asgi("/debug/settings", headers, "PUT", body=data, app=surface)

    first = put({"preset": "forensic", "ttl": "10m"})
    tag = first.headers["ETag"]
    values = {k: v["value"] for k, v in json.loads(first.body)["settings"].items()}
    assert (values["cpu_hz"], values["mutex_fraction"]) == (1000, 1)
    assert put({"cpu_hz": 10}, tag).status == 200
    assert put({"cpu_hz": 11}, tag).status == 409
    assert put({"cpu_hz": None}).status == 200
    shown = json.loads(ask_asgi("/debug/settings", admin(), app=surface).body)
    assert shown["settings"]["cpu_hz"]["value"] == 100


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"{", b'{"cpu_hz": 0}', b'{"cpu_hz": true}', b'{"cpu_hz": NaN}'),
        *(b'{"no": 1}', b'{"preset": "x"}', b'{"cpu_hz": 9, "ttl": "25h"}', b"\xff"),
        *(b'{"cpu_hz": 9, "ttl": 5}', b'{"log_levels": {"no.such.logger": "INFO"}}'),
        *(b'{"latency_buckets": [2, 1]}', b'{"trace_fraction": 2}', b"[" * 50_000),
    ],
)
def test_h33_bad_changes_change_nothing(ask: Ask, body: bytes) -> None:
    """400 in one line, none of the change is made."""
    answer = ask("/debug/settings", admin(), "PUT", body=body)

    assert answer.status == 400
    assert answer.body.count(b"\n") == 1
