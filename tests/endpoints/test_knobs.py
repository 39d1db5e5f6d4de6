"""What is switched at run time, by whom, and that it switches itself back."""

import gzip
import json
import logging
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from asking import (
    GETS,
    SETTINGS,
    Ask,
    FakeClock,
    admin,
    asgi_inner,
    ask_asgi,
    authorised,
    bearer,
    token,
)

from stroboscope._core import engine
from stroboscope.endpoints import Surface
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


def test_h33_of_many_changes_the_last_holds_and_the_baseline_returns() -> None:
    """Eight writers at once: one of their values, whole; after it, not another's."""
    clock = FakeClock()
    desk = Surface(SETTINGS, clock).desk
    start = threading.Barrier(8)

    def change(hz: int) -> None:
        start.wait()
        for _ in range(50):
            desk.knobs.change({"cpu_hz": hz, "mutex_fraction": hz}, float(hz))

    threads = [threading.Thread(target=change, args=(hz,)) for hz in range(20, 28)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = desk.knobs.describe()

    assert seen["cpu_hz"]["value"] == seen["mutex_fraction"]["value"]
    assert seen["cpu_hz"]["expires_in"] == seen["cpu_hz"]["value"]
    assert desk.knobs.version == 1 + 8 * 50
    desk.knobs.change({"cpu_hz": 30}, 5.0)
    clock.now_s += 6
    assert desk.knobs.get("cpu_hz") == SETTINGS.cpu_hz


def test_h33_a_forensic_capture_brings_back_no_old_rate() -> None:
    """A rate whose time runs out during one is not put in force again after it."""
    surface = Surface(SETTINGS)
    knobs = surface.desk.knobs
    window = engine.open_window(100)  # a scraper's, which keeps the sampler at work
    try:
        knobs.change({"cpu_hz": 37}, 600.0)
        assert engine.hz == 37
        ends = threading.Timer(0.05, knobs.change, [{"cpu_hz": None}])
        ends.start()
        asked = authorised("/debug/pprof/profile", token())
        surface.answer(replace(asked, query="forensic=1&seconds=0.2"))
        ends.join()
        rate = engine.hz
    finally:
        window.close()

    assert rate == SETTINGS.cpu_hz
