"""Knobs are switched by several clients under load, and end at their baselines."""

import re
import threading
import time
from typing import Any

import httpx
import pytest
from servers import FASTAPI, UVICORN, serving, token

CLIENTS, SWITCHES = 4, 75
CHANGES: list[dict[str, Any]] = [
    {"preset": "forensic", "ttl": "1s"},
    {"preset": "production-safe", "ttl": "1s"},
    {"heap_rate_bytes": 1024, "cpu_hz": 1000, "ttl": "1s"},
    {"mutex_fraction": 1, "block_rate_ns": 1, "ttl": "1s"},
    {"heap_rate_bytes": 0, "mutex_fraction": 0, "block_rate_ns": 0, "ttl": "1s"},
    {"heap_rate_bytes": None, "cpu_hz": None, "trace_fraction": None, "ttl": "1s"},
]


def in_force(client: httpx.Client) -> dict[str, float]:
    text = client.get("/debug/metrics?worker=all").text
    rows = re.findall(
        r'^stroboscope_setting\{(?:[^}]*,)?name="(\w+)".*?\} (\S+)$', text, re.M
    )
    return {name: float(value) for name, value in rows}


def version(client: httpx.Client) -> str:
    """Of the settings; the token's pace may make one wait for it."""
    while (answer := client.get("/debug/settings")).status_code == 429:
        time.sleep(0.2)
    return answer.headers["ETag"]


@pytest.mark.slow
def test_three_hundred_switches_under_load_end_at_the_baseline() -> None:
    """Nothing crashes, no request fails, `If-Match` refuses, and what had a ttl ends."""
    failures: list[str] = []
    served = 0
    done = threading.Event()
    headers = {"Authorization": f"Bearer {token('admin')}"}

    with serving(UVICORN, FASTAPI) as (base, _):

        def client() -> httpx.Client:
            return httpx.Client(base_url=base, headers=headers, timeout=30)

        def load() -> None:
            nonlocal served
            with httpx.Client(base_url=base, timeout=30) as asking:
                while not done.is_set():
                    answer = asking.get("/checkout/7")
                    served += 1
                    if answer.status_code != 200:
                        failures.append(f"load: {answer.status_code}")

        def switch(number: int) -> None:
            with client() as asking:
                for turn in range(SWITCHES):
                    change = CHANGES[(turn + number) % len(CHANGES)]
                    condition = {}
                    if turn % 5 == 0:
                        condition = {"If-Match": version(asking)}
                    answer = asking.put(
                        "/debug/settings", json=change, headers=condition
                    )
                    if answer.status_code == 409 and condition:
                        continue  # somebody else was first: read again
                    if answer.status_code == 429:
                        time.sleep(0.2)
                    elif answer.status_code != 200:
                        failures.append(f"{answer.status_code} {answer.text:.200}")
                    if turn % 10 == 0:
                        profile = asking.get("/debug/pprof/heap?top=3")
                        if profile.status_code not in (200, 429):
                            failures.append(f"heap: {profile.status_code}")
                    time.sleep(0.02)

        with client() as asking:
            before = in_force(asking)
            loaders = [threading.Thread(target=load) for _ in range(2)]
            switchers = [
                threading.Thread(target=switch, args=(number,))
                for number in range(CLIENTS)
            ]
            for thread in (*loaders, *switchers):
                thread.start()
            for thread in switchers:
                thread.join()
            stale = asking.put(
                "/debug/settings", json={"cpu_hz": 7}, headers={"If-Match": '"1"'}
            )
            time.sleep(2.5)
            after = in_force(asking)
            done.set()
            for thread in loaders:
                thread.join()
            left = asking.get("/debug/settings").json()["settings"]

    assert failures == []
    assert stale.status_code == 409
    assert served > 20
    assert len(before) >= 6
    assert before["heap_rate_bytes"] == 0
    assert after == before
    assert not [name for name, knob in left.items() if knob["overridden"]]
