"""The wall profile of a served application: its waits, by endpoint and status."""

import threading
import time
from collections import Counter

import httpx
import pytest
from servers import GUNICORN, UVICORN, serving, token
from waiting_site import LONG_S, SHORT_S

from stroboscope.formats.pprof_reader import decode

SECONDS = 3
CASES = {
    "uvicorn": (UVICORN, "waiting_site:asgi", "suspended", "wait_", "{item}"),
    "gthread": (
        GUNICORN + "-k gthread --threads 8 ",
        "waiting_site:app",
        "waiting",
        "sleep_",
        "<int:item>",
    ),
    "uvicorn worker": (
        GUNICORN + "-k uvicorn.workers.UvicornWorker ",
        "waiting_site:asgi",
        "suspended",
        "wait_",
        "{item}",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_each_endpoint_waited_as_long_as_it_was_built_to(case: str) -> None:
    """Requests of two endpoints at once, counted by the clients: the time each waited
    is its requests times its wait, and no wait of one is under the other's label."""
    command, app, state, wait, item = CASES[case]
    counts: Counter[str] = Counter()
    done = threading.Event()

    def load(base: str, path: str) -> None:
        with httpx.Client() as client:
            while not done.is_set():
                client.get(f"{base}/{path}/1", timeout=10).raise_for_status()
                counts[path] += 1

    headers = {"Authorization": f"Bearer {token()}"}
    with serving(command, app) as (base, _):
        loads = [
            threading.Thread(target=load, args=(base, path))
            for path in ("short", "long", "short", "long")
        ]
        for one in loads:
            one.start()
        time.sleep(0.5)
        before = counts.copy()
        answer = httpx.get(
            f"{base}/debug/pprof/wall?seconds={SECONDS}", headers=headers, timeout=60
        )
        # The answer takes a moment more than the profile: the rate is what counts.
        after, asked_s = counts.copy(), answer.elapsed.total_seconds()
        done.set()
        for one in loads:
            one.join()

    profile = decode(answer.content)
    share = profile.duration_ns / 1e9 / asked_s
    waited: Counter[tuple[str, str]] = Counter()
    for sample in profile.samples:
        labels = dict(sample.labels)
        for name in ("short", "long"):
            is_there = any(f.function == wait + name for f in sample.stack)
            if is_there and labels["state"] != "running":
                assert labels["state"] == state
                assert labels["endpoint"] == f"/{name}/{item}"
                waited[name, labels.get("status", "")] += sample.values[0]

    for name, wait_s in (("short", SHORT_S), ("long", LONG_S)):
        expected_s = (after[name] - before[name]) * wait_s * share
        assert waited[name, "2xx"] / 1e9 == pytest.approx(expected_s, rel=0.15), name
        assert waited[name, ""] / 1e9 < 2 * wait_s + 0.1
