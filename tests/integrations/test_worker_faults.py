"""What becomes of a joined capture whose workers stop, die or are replaced under it."""

import os
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from counting import nothing_leaks
from fronts import bearer
from servers import FASTAPI, FLASK, GUNICORN, HYPERCORN, UVICORN, serving
from workers import wait_until

from stroboscope.endpoints.joining import CAPTURE_GRACE_S, HEADER
from stroboscope.formats.pprof_reader import decode

_GUNICORN_UVICORN = GUNICORN + "-k uvicorn.workers.UvicornWorker"
SERVERS = {
    "sync": (GUNICORN + "-k sync -w 3", FLASK),
    "gthread": (GUNICORN + "-k gthread --threads 4 -w 3", FLASK),
    "gunicorn-uvicorn": (_GUNICORN_UVICORN + " -w 3", FASTAPI),
    "uvicorn": (UVICORN + "--workers 3", FASTAPI),
    "hypercorn": (HYPERCORN + "-w 3", FASTAPI),
}
#: Each worker serves some tens of requests, then another takes its place.
RECYCLING = {
    "gthread": (GUNICORN + "-k gthread --threads 4 -w 3 --max-requests 25", FLASK),
    "gunicorn-uvicorn": (_GUNICORN_UVICORN + " -w 3 --max-requests 25", FASTAPI),
    "uvicorn": (UVICORN + "--workers 3 --limit-max-requests 25", FASTAPI),
}
#: Of the capture; and who asks the application meanwhile.
SECONDS, CLIENTS = 1.2, 2


class Site:
    """A server with three workers that have met."""

    def __init__(self, base: str, rundir: Path, command: str) -> None:
        self.base, self.folder = base, rundir / "shop"
        self.ends_with_its_workers = command.startswith("hypercorn")

    def by_socket(self, pid: int, path: str) -> httpx.Response:
        transport = httpx.HTTPTransport(uds=str(self.folder / f"{pid}.sock"))
        with httpx.Client(transport=transport, timeout=30) as client:
            return client.get(f"http://localhost/debug{path}", headers=bearer())

    def meet(self, count: int = 3) -> list[int]:
        """Their pids, when there are so many, all with a socket."""
        ends_s = time.monotonic() + 20
        while time.monotonic() < ends_s:
            try:
                answer = httpx.get(
                    f"{self.base}/debug/workers", headers=bearer(), timeout=5
                )
            except httpx.HTTPError:
                continue
            if answer.headers.get(HEADER) == f"{count}/{count}":
                return [one["pid"] for one in answer.json()["workers"]]
            time.sleep(0.02)
        raise AssertionError(answer.text)

    def work(self) -> None:
        """A request of the application; whose worker was killed has none."""
        try:
            urllib.request.urlopen(f"{self.base}/search", timeout=3).read()
        except OSError:
            time.sleep(0.02)


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    command, app = request.param
    with serving(command, app, STROBOSCOPE_RUNDIR=str(tmp_path)) as (base, _):
        yield Site(base, tmp_path, command)


def said(answer: httpx.Response) -> tuple[str, dict[int, str], set[str]]:
    """The share of workers, what it says of the missing, and whose samples are in it."""
    profile = decode(answer.content)
    notes = [re.fullmatch(r"worker (\d+) (.*)", one) for one in profile.comments]
    missing = {int(one[1]): one[2] for one in notes if one}
    share = answer.headers[HEADER]
    assert f"workers: {share}" in profile.comments
    return share, missing, {dict(one.labels).get("pid", "") for one in profile.samples}


@pytest.mark.slow
@pytest.mark.parametrize("site", SERVERS.values(), ids=SERVERS, indirect=True)
def test_h42_a_capture_outlives_its_workers(site: Site) -> None:
    """One stopped and one killed in the middle: in time, both named, nothing leaks."""
    asked, stopped, killed = site.meet()
    lost = {stopped} if site.ends_with_its_workers else {stopped, killed}
    with ThreadPoolExecutor(4) as pool, ExitStack() as stack:
        done = threading.Event()
        stack.callback(done.set)
        stack.callback(os.kill, stopped, signal.SIGCONT)
        for _ in range(CLIENTS):
            pool.submit(lambda: [site.work() for _ in iter(done.is_set, True)])
        path = f"/pprof/profile?seconds={SECONDS}"
        # What the first one makes stays.
        whole = site.by_socket(asked, "/pprof/profile?seconds=0.1")
        with nothing_leaks([asked, stopped, killed], site.folder, CLIENTS):
            began_s = time.monotonic()
            future = pool.submit(site.by_socket, asked, path)
            time.sleep(SECONDS / 2)
            os.kill(stopped, signal.SIGSTOP)
            if killed in lost:
                os.kill(killed, signal.SIGKILL)
            partial = future.result()
            took_s = time.monotonic() - began_s
            began_s = time.monotonic()
            stacks = site.by_socket(asked, "/stacks")
            stacks_took_s = time.monotonic() - began_s
            os.kill(stopped, signal.SIGCONT)
            done.set()

    assert said(whole)[:2] == ("3/3", {})
    share, missing, seen = said(partial)
    assert share == f"{3 - len(lost)}/3"
    assert missing.keys() == lost
    assert missing[stopped] == "is stopped"
    assert missing.get(killed, "did not answer: ").startswith("did not answer: ")
    assert seen  # whoever had requests meanwhile
    assert seen <= {str(pid) for pid in {asked, stopped, killed} - lost}
    assert took_s < SECONDS + CAPTURE_GRACE_S + 1
    # How soon that is seen depends on who else runs; it is named in either case.
    why = rf"worker {stopped} (is stopped|did not answer in time)"
    assert re.search(why, stacks.text)
    assert (f"=== worker {killed} " not in stacks.text) == (killed in lost)
    assert stacks_took_s < 0.8 + 1


@pytest.mark.slow
@pytest.mark.parametrize("site", RECYCLING.values(), ids=RECYCLING, indirect=True)
def test_h42_a_capture_outlives_a_worker_that_is_replaced(site: Site) -> None:
    """By `--max-requests` in the middle: who is gone is named, all others are in it."""
    site.meet()
    path = f"/debug/pprof/profile?seconds={SECONDS}"
    with ThreadPoolExecutor(3) as pool, ExitStack() as stack:
        done = threading.Event()
        stack.callback(done.set)
        for _ in range(3):
            pool.submit(lambda: [site.work() for _ in iter(done.is_set, True)])
        for _ in range(5):  # until one is replaced in the middle of a capture
            began_s = time.monotonic()
            # By the port: a server waits for whoever answers there.
            try:
                answer = httpx.get(site.base + path, headers=bearer(), timeout=30)
            except httpx.HTTPError:  # of a worker that had just gone
                continue
            took_s = time.monotonic() - began_s
            share, missing, seen = said(answer)
            came, _, asked = share.partition("/")
            assert took_s < SECONDS + CAPTURE_GRACE_S + 1
            assert int(asked) - int(came) == len(missing)
            assert missing.keys().isdisjoint(map(int, seen - {""}))
            if missing:
                break
    wait_until(lambda: not any(map(is_running, missing)), 10)
    names = os.listdir(site.folder)

    left = [f"{pid}.{kind}" for pid in missing for kind in ("sock", "alive", "samples")]
    assert missing
    assert set(left).isdisjoint(names)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
