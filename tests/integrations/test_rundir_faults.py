"""A run directory that cannot be used, from the start or from some moment on.

Workers of a real server then answer for themselves and say so; they meet again when it
can be used again.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from counting import nothing_leaks
from fronts import bearer
from servers import FASTAPI, UVICORN, serving
from workers import wait_until

from stroboscope.endpoints.joining import HEADER
from stroboscope.formats.pprof_reader import decode

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root"),
    pytest.mark.slow,
]
NOBODY = 65534


class Site:
    """Two workers of one server whose run directory is a small file system."""

    def __init__(self, base: str, place: Path, log: Path) -> None:
        self.base, self.place, self.log = base, place, log
        self.folder = place / "shop"

    def ask(self, path: str, method: str = "GET", **options: object) -> httpx.Response:
        return httpx.request(
            method,
            f"{self.base}/debug{path}",
            headers=bearer(),
            timeout=20,
            **options,  # type: ignore[arg-type]
        )

    def share(self) -> str:
        return self.ask("/stacks").headers[HEADER]

    def rundir(self) -> str:
        return str(self.ask("/selfcheck").json()["rundir"])

    def lines(self, text: str) -> int:
        return sum(text in line for line in self.log.read_text().splitlines())

    def pids(self) -> list[int]:
        return sorted(int(one.stem) for one in self.folder.glob("*.sock"))


#: A site, what it answered while its folder was read-only, and lines of its log then.
Began = tuple[Site, list[httpx.Response], str, list[int]]


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, timeout=10)


@pytest.fixture(scope="module")
def began(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Began]:
    """The server, and what it answered while its run directory was read-only."""
    folder = tmp_path_factory.mktemp("rundir")
    place, log = folder / "small", folder / "log"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m,ro,mode=0700", "tmpfs", str(place))
    try:
        with (
            log.open("wb") as output,
            serving(
                UVICORN + "--workers 2",
                FASTAPI,
                output,
                STROBOSCOPE_RUNDIR=str(place),
            ) as (base, _),
        ):
            site = Site(base, place, log)
            wait_until(lambda: site.lines("cannot listen") == 2, 10)
            answers = [
                site.ask("/stacks"),
                site.ask("/pprof/profile?seconds=0.1"),
                site.ask("/pprof/heap"),
                site.ask("/settings", "PUT", json={"cpu_hz": 50, "ttl": "1s"}),
                site.ask("/trace?seconds=0.1"),
                httpx.get(f"{base}/search", timeout=20),
            ]
            rundir = site.rundir()
            time.sleep(1)  # another turn: nothing is said again
            said = [site.lines(text) for text in ("cannot listen", "for itself")]
            mount("-o", "remount,rw", str(place))
            yield site, answers, rundir, said
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=10)


@pytest.fixture
def site(began: Began) -> Iterator[Site]:
    """With both workers in it, before and after."""
    site = began[0]
    wait_until(lambda: site.share() == "2/2", 10)
    wait_until(lambda: len(list(site.folder.glob("*.samples"))) == 2, 10)
    with nothing_leaks(site.pids()):
        yield site
        wait_until(lambda: site.share() == "2/2", 10)


def test_a_folder_that_is_read_only_from_the_start(
    began: Began,
) -> None:
    """Each worker answers for itself, and says so in its answers, its log and its
    check; they meet when it can be written."""
    site, answers, rundir, said = began
    stacks, profile, heap, put, trace, own = answers

    assert {one.status_code for one in answers} == {200}, [one.text for one in answers]
    assert {one.headers[HEADER] for one in (stacks, profile, heap)} == {"1/?"}
    assert put.json()["holds_for"] == "this worker"
    assert "Read-only file system" in rundir
    assert trace.content
    assert own.json()["hits"]
    assert said[0] == 2
    assert 1 <= said[1] <= 2  # each worker that was asked, once
    wait_until(lambda: site.share() == "2/2", 5)
    wait_until(lambda: site.rundir() == "on", 5)


@contextmanager
def read_only(site: Site) -> Iterator[str]:
    # Over it, for the kernel lets nothing become so while files are open for writing.
    mount("--bind", str(site.place), str(site.place))
    try:
        mount("-o", "remount,bind,ro", str(site.place))
        yield "Read-only file system"
    finally:
        subprocess.run(["umount", str(site.place)], check=True, timeout=10)


@contextmanager
def anothers(site: Site) -> Iterator[str]:
    os.chown(site.folder, NOBODY, NOBODY)
    try:
        yield f"belongs to user {NOBODY}"
    finally:
        os.chown(site.folder, 0, 0)


@contextmanager
def open_to_all(site: Site) -> Iterator[str]:
    site.folder.chmod(0o777)
    try:
        yield "open to others"
    finally:
        site.folder.chmod(0o700)


@pytest.mark.parametrize("fault", [read_only, anothers, open_to_all])
def test_a_folder_that_cannot_be_used_any_more(
    site: Site, fault: Callable[[Site], Iterator[str]]
) -> None:
    """Under way: one worker's answers, the reason in the log once and in the check,
    and all of them again when it is over."""
    with fault(site) as reason:  # type: ignore[attr-defined]
        before = site.lines("answers for itself")
        shares = [site.share() for _ in range(6)]
        profile = site.ask("/pprof/profile?seconds=0.1")
        put = site.ask("/settings", "PUT", json={"cpu_hz": 50, "ttl": "1s"})
        checks = {site.rundir() for _ in range(4)}
        said = site.lines("answers for itself") - before

    assert set(shares) == {"1/?"}
    assert profile.headers[HEADER] == "1/?"
    assert len(decode(profile.content).sample_types) == 2
    assert put.json()["holds_for"] == "this worker"
    assert all(reason in one for one in checks), checks
    assert 1 <= said <= 2  # each worker that was asked, once
    assert site.share() == "2/2"
    assert site.rundir() == "on"


def test_a_folder_that_is_deleted_under_a_capture(site: Site) -> None:
    """The capture is of both workers; after it nobody claims to be the only one, and
    both are back soon."""
    with ThreadPoolExecutor() as pool:
        future = pool.submit(site.ask, "/pprof/profile?seconds=0.6")
        time.sleep(0.3)
        shutil.rmtree(site.folder)
        seen = []
        ends_s = time.monotonic() + 8
        while not seen or (seen[-1] != "2/2" and time.monotonic() < ends_s):
            seen.append(site.share())
        profile = future.result()

    assert profile.headers[HEADER] == "2/2"
    assert seen[-1] == "2/2"
    assert set(seen) == {"1/?", "2/2"}
    wait_until(lambda: site.rundir() == "on", 5)


def test_a_folder_that_is_full(site: Site) -> None:
    """They still answer for each other; what could not be kept is said."""
    filler = site.place / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        shares = {site.share() for _ in range(3)}
        heap = site.ask("/pprof/heap")
        rundir = site.rundir()
    finally:
        filler.unlink()

    assert shares == {"2/2"}
    assert heap.headers[HEADER] == "2/2"
    assert "not kept for when this worker is gone" in " ".join(
        decode(heap.content).comments
    )
    assert "No space left" in rundir
    assert site.rundir() == "on"
