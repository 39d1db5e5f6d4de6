"""A run directory that a service may not use because it is no root: a real server as a
user whom file modes stop, which root's are not."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import containers
import httpx
import pytest
from containers import INSIDE, Container, container
from workers import wait_until

from stroboscope.endpoints.joining import HEADER
from stroboscope.formats.pprof_reader import decode

USER = 65532
UVICORN = "uvicorn --log-level warning --port {port} shut_site:app"
#: Where the run directory shall be, and what is said of it.
PLACES = {
    "shut/missing": "Permission denied",
    "shut": "Permission denied",
    "roots": "Permission denied",
    "file": "Not a directory",
    "link": "Not a directory",
    "own-file": "Not a directory",
    "own-link": "Not a directory",
    "anothers": f"belongs to user {USER + 1}",
    "anothers-own": f"belongs to user {USER + 1}",
}


def prepare(place: Path) -> None:
    """Each place, as root, another or the user itself left it."""
    own = ("shut", "target", "own-file", "own-link", "anothers-own", "file", "link")
    for name in ("roots", "anothers", *own[:-2]):
        (place / name).mkdir()
    (place / "anothers-own/shop").mkdir(mode=0o700)
    (place / "file").touch()
    (place / "own-file/shop").touch()
    (place / "link").symlink_to("target")
    (place / "own-link/shop").symlink_to("../target")
    for name in own:
        os.chown(place / name, USER, USER, follow_symlinks=False)
    for name in ("anothers", "anothers-own/shop"):
        os.chown(place / name, USER + 1, USER + 1)
    (place / "shut").chmod(0o500)
    place.chmod(0o755)


@dataclass(frozen=True, slots=True)
class Site:
    """All of the services in one process, and what that logs."""

    server: Container
    log: Path

    def ask(self, name: str, path: str, **options: object) -> httpx.Response:
        """An answer of the surface of one of them."""
        return self.server.ask(path, at=f"{INSIDE}/{name}", **options)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The server; nothing was put where a link leads."""
    place, log = (tmp_path_factory.mktemp(name) for name in ("places", "log"))
    if why := containers.why_not(place, USER):
        pytest.skip(f"nobody to be without root's rights: {why}")
    prepare(place)
    places = ":".join(f"{INSIDE}/{name}" for name in PLACES)
    with (
        (log / "log").open("wb") as output,
        container("web", place, UVICORN, output, USER, PLACES=places) as server,
    ):
        yield Site(server, log / "log")
    assert [*(place / "target").iterdir()] == []


@pytest.mark.parametrize("name", PLACES)
def test_a_service_that_may_not_use_its_run_directory_answers_for_itself(
    site: Site, name: str
) -> None:
    """Its own requests and ours; why is in its check and in the log, once; nothing is
    raised into the application."""
    said = re.compile(f"cannot listen: {INSIDE}/{name}(/shop)?:? {PLACES[name]}")
    works = site.server.get(f"{INSIDE}/{name}/works")
    wait_until(lambda: said.search(site.log.read_text()) is not None, 5)
    stacks = site.ask(name, "/stacks")
    profile = site.ask(name, "/pprof/profile?seconds=0.1")
    answers = [site.ask(name, path) for path in ("/pprof/heap", "/trace?seconds=0.1")]
    body = {"cpu_hz": 50, "ttl": "1s"}
    put = site.ask(name, "/settings", method="PUT", json=body)
    check, workers = site.ask(name, "/selfcheck"), site.ask(name, "/workers")
    log = site.log.read_text()

    assert works.status_code == 200
    assert {one.status_code for one in answers} == {200}, [one.text for one in answers]
    assert stacks.headers[HEADER] == profile.headers[HEADER] == "1/?"
    assert workers.headers[HEADER] == "1/?"
    assert len(decode(profile.content).sample_types) == 2
    assert put.json()["holds_for"] == "this worker"
    assert PLACES[name] in check.json()["rundir"]
    assert len(said.findall(log)) == 1
    assert "Traceback" not in log
