"""Stalls of real servers, asked for at `/debug/stalls`."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from servers import GUNICORN, UVICORN, serving, token

APP, THREADS = "stalling_site:app", "stalling_site:threads"
LOOPS = {
    "asyncio": UVICORN + "--loop asyncio",
    "uvloop": UVICORN + "--loop uvloop",
    "gunicorn": GUNICORN + "-k uvicorn.workers.UvicornWorker",
}


def headers(**more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token('profile', 'metrics')}", **more}


def stalls(base: str) -> list[dict[str, Any]]:
    asked = headers(Accept="application/json")
    return httpx.get(base + "/debug/stalls", headers=asked, timeout=20).json()


def by_code(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for one in found if one["cause"] == "code"]


def stall_once(base: str, in_flight: int = 50) -> None:
    # One client: each would read the certificates of all authorities again.
    limits = httpx.Limits(max_connections=None)
    with (
        httpx.Client(base_url=base, timeout=20, limits=limits) as client,
        ThreadPoolExecutor(in_flight + 1) as pool,
    ):
        asked = [pool.submit(client.get, "/waits?seconds=1") for _ in range(in_flight)]
        time.sleep(0.5)
        asked.append(pool.submit(client.get, "/on-loop/sleeps"))
        assert {one.result().status_code for one in asked} == {200}


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
def test_the_guilty_endpoint_and_line_are_named(loop: str) -> None:
    """One blocks for 300 ms, fifty are in flight: one stall, and it is theirs."""
    with serving(LOOPS[loop], APP) as (base, _):
        stall_once(base)
        found = by_code(stalls(base))
        text = httpx.get(base + "/debug/stalls", headers=headers()).text
        metrics = httpx.get(base + "/debug/metrics", headers=headers()).text

    (one,) = [s for s in found if s["labels"].get("endpoint") == "/on-loop/{way}"]
    assert one["labels"]["tenant"] == "acme"
    assert one["frame"]["function"] == "sleeps"
    assert one["frame"]["file"].endswith("stalling_site.py")
    assert "sleeps" in text
    assert "endpoint=/on-loop/{way}" in text
    assert 'stroboscope_stalls_total{kind="loop",cause="code"}' in metrics
    assert 'stroboscope_stall_seconds_bucket{kind="loop",le="0.5"}' in metrics


@pytest.mark.slow
@pytest.mark.parametrize("preload", [" --preload"])
def test_a_greenlet_that_blocks_its_hub_is_named(preload: str) -> None:
    """gevent: one blocks for 300 ms while twenty give way; the stall is its own, and
    none of those that only waited."""
    with serving(GUNICORN + "-k gevent" + preload, THREADS) as (base, _):
        httpx.get(base + "/ready/0", timeout=20)
        time.sleep(1.5)  # idle: no stall
        with ThreadPoolExecutor(21) as pool:
            asked = [
                pool.submit(httpx.get, base + "/sleeps/1", timeout=20)
                for _ in range(20)
            ]
            time.sleep(0.4)
            asked.append(pool.submit(httpx.get, base + "/turns/0.3", timeout=20))
            assert {one.result().status_code for one in asked} == {200}
        time.sleep(0.3)
        found = by_code(stalls(base))

    (one,) = [s for s in found if s["frame"]["function"] == "turns"]
    assert one["kind"] == "loop"
    assert one["labels"]["endpoint"] == "/turns/0.3"
    assert 200 <= one["duration_ms"] < 1500
    assert not [s for s in found if s["labels"].get("endpoint") == "/sleeps/1"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["gthread --threads 4", "sync"])
def test_a_request_that_keeps_its_thread_is_recorded_once(workers: str) -> None:
    """At half its time and at the threshold somebody looks; when it ends it is over."""
    with serving(
        GUNICORN + f"-k {workers}", THREADS, STROBOSCOPE_SLOW_REQUEST_S="1"
    ) as (base, _):
        httpx.get(base + "/sleeps/2.5", timeout=20)
        time.sleep(0.5)
        httpx.get(base + "/sleeps/0.2", timeout=20)
        found = [one for one in stalls(base) if one["kind"] == "request"]

    (one,) = found
    assert one["labels"]["endpoint"] == "/sleeps/2.5"
    assert one["frame"]["function"] == "sleeps"
    assert (one["looks"], one["seen"], one["is_over"]) == (2, 2, True)
    assert 2400 <= one["duration_ms"] <= 4000
