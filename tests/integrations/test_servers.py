"""Each example answers under its real server, and its profile has the right labels."""

import os
import re
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from servers import (
    FASTAPI,
    FLASK,
    GUNICORN,
    HYPERCORN,
    UVICORN,
    serving,
    token,
    under_load,
)

from stroboscope.formats.pprof_reader import decode
from stroboscope.formats.profile import Profile, Sample

UVICORN_WORKER = "uvicorn.workers.UvicornWorker"
#: name: (command, application). A supervisor stands above the workers of those with
#: more than one process.
SERVERS = {
    "uvicorn": (UVICORN + "--loop asyncio", FASTAPI),
    "uvicorn-uvloop": (UVICORN + "--loop uvloop", FASTAPI),
    "uvicorn-2": (UVICORN + "--workers 2", FASTAPI),
    "uvicorn-asgi": (UVICORN, "examples.asgi_app:app"),
    "uvicorn-django": (UVICORN, "examples.django_app:asgi"),
    "hypercorn": (HYPERCORN, FASTAPI),
    "hypercorn-uvloop-2": (HYPERCORN + "-k uvloop -w 2", FASTAPI),
    "gthread-2": (GUNICORN + "-k gthread --threads 4 -w 2", FLASK),
    "gthread-preload": (GUNICORN + "-k gthread --threads 4 --preload", FLASK),
    "gthread-wsgi": (GUNICORN + "-k gthread --threads 4", "examples.wsgi_app:app"),
    "gthread-django": (GUNICORN + "-k gthread --threads 4", "examples.django_app:app"),
    "gevent": (GUNICORN + "-k gevent", FLASK),
    "gevent-preload-2": (GUNICORN + "-k gevent --preload -w 2", FLASK),
    "gunicorn-uvicorn": (GUNICORN + f"-k {UVICORN_WORKER}", FASTAPI),
    "gunicorn-uvicorn-preload-2": (
        GUNICORN + f"-k {UVICORN_WORKER} --preload -w 2",
        FASTAPI,
    ),
}
#: The function that burns CPU for a route, and how that route's label begins.
TRUTH = {
    "price_basket": "/checkout/",
    "rank_results": "/search",
    "draw_page": "/render/",
    "hello": "/hello",
}
PATHS = {
    FASTAPI: ("/checkout/5", "/search", "/render/home"),
    FLASK: ("/checkout/5", "/search"),
}


def fetch(base: str, seconds: float) -> Profile:
    return fetch_with_share(base, seconds)[0]


def fetch_with_share(base: str, seconds: float) -> tuple[Profile, str]:
    """The profile of all workers, and how many of how many are in it."""
    answer = httpx.get(
        f"{base}/debug/pprof/profile?seconds={seconds}",
        headers={"Authorization": f"Bearer {token()}"},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    return decode(answer.content), answer.headers["X-Stroboscope-Workers"]


def parts_of(profile: Profile) -> dict[int, Profile]:
    """The profile of each worker; that of the only one has no pid in its labels."""
    parts: dict[int, list[Sample]] = {pid: [] for pid in workers_of(profile)}
    for sample in profile.samples:
        pid = dict(sample.labels).get("pid")
        (alone, *_) = parts
        parts[int(pid) if pid else alone].append(sample)
    return {pid: replace(profile, samples=found) for pid, found in parts.items()}


def judged(profile: Profile) -> Counter[str]:
    """Nanoseconds of known work under the right label, a wrong one, and none."""
    verdicts = Counter[str]()
    for stack, values, labels in profile.samples:
        names = {frame.function for frame in stack} & TRUTH.keys()
        if names:
            endpoint = dict(labels).get("endpoint", "")
            is_right = endpoint.startswith(TRUTH[names.pop()])
            kind = "right" if is_right else "wrong" if endpoint else "missing"
            verdicts[kind] += values[1]
    return verdicts


def has_worked(profile: Profile, name: str) -> bool:
    """Whether there is enough in it to judge by."""
    if "django" in name:  # its example works in the view itself, under another name
        return profile.total() > 0.2e9
    return judged(profile).total() > 0.15e9


def workers_of(profile: Profile) -> list[int]:
    return [int(one) for one in re.findall(r"process (\d+)", str(profile.comments))]


def catches_sigprof(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = re.search(r"SigCgt:\s*([0-9a-f]+)", status)
    assert caught is not None
    return bool(int(caught[1], 16) >> (signal.SIGPROF - 1) & 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
def test_h41_each_worker_is_profiled_with_right_labels(name: str) -> None:
    """One answer has every worker, no label is wrong, no supervisor samples."""
    command, app = SERVERS[name]
    wanted = 2 if name.endswith("-2") else 1
    paths = PATHS.get(app, ("/checkout/5",))

    with serving(command, app) as (base, started), under_load(base, paths, paths):
        assert httpx.get(base + "/debug/pprof/profile").status_code == 401
        profiles: dict[int, Profile] = {}
        for _ in range(12):  # until each worker has had work
            profile, share = fetch_with_share(base, 1.5)
            profiles |= {
                pid: part
                for pid, part in parts_of(profile).items()
                if part.total() > 0.2e9
            }
            if len(profiles) == wanted:
                break
        sampling = {pid: catches_sigprof(pid) for pid in profiles}
        is_supervised = started not in profiles
        supervisor_samples = is_supervised and catches_sigprof(started)

    assert (len(profiles), share) == (wanted, f"{wanted}/{wanted}")
    assert all(sampling.values())
    assert not supervisor_samples
    assert is_supervised or wanted == 1
    for profile in profiles.values():
        verdicts = judged(profile)
        assert verdicts["wrong"] == 0, verdicts
        if "django" in name:
            labels = [dict(sample.labels) for sample in profile.samples]
            assert any(one.get("endpoint", "").startswith("/check") for one in labels)
        else:
            assert verdicts["right"] > 0.1e9, verdicts
            assert verdicts["missing"] <= 0.02 * verdicts["right"], verdicts


@pytest.mark.slow
def test_h41_a_sync_worker_answers_with_a_valid_profile() -> None:
    """It serves nothing else meanwhile, so its profile is empty, and valid."""
    with serving(GUNICORN + "-k sync --preload", "examples.wsgi_app:app") as (base, _):
        profile = fetch(base, 1)

    assert profile.duration_ns >= 1e9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "app"),
    [
        (UVICORN, FASTAPI),
        (HYPERCORN, FASTAPI),
        (GUNICORN + "-k gthread --threads 4", FLASK),
        (GUNICORN + "-k gevent", FLASK),
    ],
    ids=["uvicorn", "hypercorn", "gthread", "gevent"],
)
def test_h21_a_client_that_goes_away_stops_the_sampler(command: str, app: str) -> None:
    """The windows of clients that hung up are free for others at once."""
    with serving(command, app) as (base, _):
        for _ in range(6):  # two more than there are windows
            with pytest.raises(httpx.ReadTimeout):
                httpx.get(
                    base + "/debug/pprof/profile?seconds=30",
                    headers={"Authorization": f"Bearer {token()}"},
                    timeout=0.3,
                )
            time.sleep(0.25)
        profile = fetch(base, 0.2)

    assert profile.duration_ns >= 2e8


@pytest.mark.slow
def test_h49_pprof_fetches_with_the_token_in_the_address(
    tmp_path: Path, go_pprof: list[str]
) -> None:
    """`go tool pprof` reads it over HTTP, focuses on a tag and prints our refusal."""

    def top(address: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*go_pprof, "-top", "-tagfocus=endpoint=/checkout/{item}", address],
            env={**os.environ, "PPROF_TMPDIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    with (
        serving(UVICORN, FASTAPI) as (base, _),
        under_load(base, *[PATHS[FASTAPI]] * 2),
    ):
        address = base.replace("//", f"//x:{token()}@")
        good = top(f"{address}/debug/pprof/profile?seconds=1")
        bad = top(f"{base}/debug/pprof/profile?seconds=1")

    assert "price_basket" in good.stdout, good.stderr
    assert "rank_results" not in good.stdout
    assert bad.returncode != 0
    assert "401 Unauthorized - unauthorized" in bad.stderr
