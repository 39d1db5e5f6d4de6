"""The heap profile of real servers, against what their endpoints are known to hold."""

import math
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import scrapers
from holding_site import BLOCK, CALL
from servers import GUNICORN, UVICORN, serving, token

RATE = 65_536
FASTAPI, FLASK = "holding_site:fastapi_app", "holding_site:flask_app"
SERVERS = {
    "uvicorn": (UVICORN, FASTAPI),
    "gthread": (GUNICORN + "-k gthread --threads 4 --workers 2 --preload", FLASK),
    "gevent": (GUNICORN + "-k gevent", FLASK),
    "uvicorn-worker": (GUNICORN + "-k uvicorn.workers.UvicornWorker", FASTAPI),
}
CALLS = {"a": 12, "b": 6, "c": 18}


def call_all(base: str) -> dict[str, Counter[int]]:
    """Interleaved; the calls each process answered, by endpoint."""
    answered = {name: Counter[int]() for name in CALLS}

    def client(name: str) -> None:
        for _ in range(CALLS[name]):
            answer = httpx.get(f"{base}/{name}", timeout=30)
            answered[name][answer.json()["pid"]] += 1

    threads = [threading.Thread(target=client, args=(name,)) for name in CALLS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answered


def rows(message: Any) -> list[tuple[dict[str, str], list[int]]]:
    strings = message.string_table
    return [
        (
            {strings[one.key]: strings[one.str] for one in sample.label},
            list(sample.value),
        )
        for sample in message.sample
    ]


def fetch(base: str, path: str) -> bytes:
    headers = {"Authorization": f"Bearer {token('profile')}"}
    answer = httpx.get(f"{base}/debug/pprof/{path}", headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.content


def deviation(total: int) -> float:
    p = -math.expm1(-BLOCK / RATE)
    return math.sqrt(total / BLOCK * BLOCK**2 * (1 - p) / p)


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
def test_every_endpoint_holds_what_it_is_known_to_hold(name: str) -> None:
    """Use by endpoint within 4 sigma, in each process, and under final labels."""
    command, app = SERVERS[name]
    with serving(command, app, STROBOSCOPE_HEAP_RATE_BYTES=str(RATE)) as (base, _):
        httpx.get(base + "/drop/a")  # awake
        answered = call_all(base)
        message = scrapers.check(fetch(base, "heap"))
        found: Counter[tuple[str, str]] = Counter()
        for labels, values in rows(message):
            if labels.get("status") == "2xx":
                found[labels["endpoint"], labels.get("pid", "")] += values[3]
        assert message.period == RATE
        pids = {pid for one in answered.values() for pid in one}
        for endpoint, by_pid in answered.items():
            for pid, calls in by_pid.items():
                shown = str(pid) if len(pids) > 1 else ""
                held = found[f"/{endpoint}", shown] or found[f"/{endpoint}", str(pid)]
                assert abs(held - calls * CALL) <= 4 * deviation(calls * CALL), found


@pytest.mark.slow
def test_the_real_pprof_shows_use_growth_and_differences(
    go_pprof: list[str], tmp_path: Path
) -> None:
    """`-sample_index`, `-tagfocus` and `-diff_base` by the real tool; `seconds=` too."""

    def pprof(*arguments: str | Path) -> str:
        done = subprocess.run(
            [*go_pprof, "-unit=MB", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def megabytes(shown: str) -> float:
        line = next(one for one in shown.splitlines() if one.startswith("Showing"))
        return float(line.split("MB")[0].rpartition(" ")[2])

    with serving(UVICORN, FASTAPI, STROBOSCOPE_HEAP_RATE_BYTES="16384") as (base, _):
        httpx.get(base + "/drop/a")

        def after(act: Callable[[], object], name: str) -> Path:
            act()
            path = tmp_path / name
            path.write_bytes(fetch(base, "heap"))
            return path

        before = after(lambda: None, "before")
        held = after(lambda: call_all(base), "held")
        dropped = after(lambda: httpx.get(base + "/drop/c"), "dropped")
        (tmp_path / "allocs").write_bytes(fetch(base, "allocs"))
        (tmp_path / "delta").write_bytes(fetch(base, "heap?seconds=0.2"))
        text = fetch(base, "heap?debug=1").decode()

    focus = "-tagfocus=endpoint=/c$"
    in_use = pprof("-top", "-sample_index=inuse_space", focus, held)
    assert megabytes(in_use) == pytest.approx(72, rel=0.1)
    grown = pprof("-top", "-sample_index=inuse_space", f"-diff_base={before}", held)
    assert megabytes(grown) == pytest.approx(144, rel=0.1)
    fallen = pprof(
        "-top", "-sample_index=inuse_space", focus, f"-diff_base={held}", dropped
    )
    assert megabytes(fallen) == pytest.approx(-72, rel=0.1)
    total = pprof("-top", "-sample_index=alloc_space", focus, dropped)
    assert 65 < megabytes(total) < 90  # lists that grew, and the requests themselves
    assert "Type: alloc_space" in pprof("-top", tmp_path / "allocs")
    pprof("-top", tmp_path / "delta")
    head, first = text.splitlines()[:2]
    assert head.startswith("heap profile: ")
    assert head.endswith(" @ heap/32768")
    objects, space, every, all_space = first.partition(" @ ")[0].split()
    assert int(space) > 1 << 20
    assert (objects[-1], every[0], every[-1], all_space[-1]) == (":", "[", ":", "]")
