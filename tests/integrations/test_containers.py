"""A service in a container, and who shares its run directory from others: the sidecar, a
second copy of the service by mistake, another user."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import containers
import pytest
from containers import Container, container
from workers import wait_until

from stroboscope.endpoints.joining import HEADER
from stroboscope.formats.pprof_reader import decode

WEB = "gunicorn --log-level warning --bind 127.0.0.1:{port} -w 2 -k "
ASGI = WEB + "uvicorn.workers.UvicornWorker stalling_site:app"
ALONE = "uvicorn --log-level warning --port {port} stalling_site:app"
SIDECAR = "stroboscope.cli serve --service shop --bind 127.0.0.1:{port}"
#: Whose the run directory is and who runs everything, as in a hardened pod.
USER = 65532


class Pod:
    """A service of two workers and its sidecar, each in a container of its own."""

    def __init__(
        self, web: Container, side: Container, rundir: Path, log: Path
    ) -> None:
        self.web, self.side, self.rundir, self.log = web, side, rundir, log

    def files(self) -> dict[str, tuple[int, int]]:
        """What the workers have in the run directory, by name, with what tells it from
        another of that name."""
        found = [*(self.rundir / "shop").glob("[1-9]*.*")]
        stats = {one.name: one.lstat() for one in found}
        return {name: (one.st_ino, one.st_uid) for name, one in stats.items()}


@pytest.fixture(scope="module")
def rundir() -> Iterator[Path]:
    """As an `emptyDir` with `fsGroup`: of root, for all of a group to write."""
    with tempfile.TemporaryDirectory(prefix="strobe-") as path:
        if why := containers.why_not(Path(path), USER):
            pytest.skip(f"no containers here: {why}")
        os.chown(path, 0, USER)
        os.chmod(path, 0o2777)
        yield Path(path)


@pytest.fixture(scope="module")
def pod(rundir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    log = tmp_path_factory.mktemp("pod") / "log"
    with (
        log.open("wb") as output,
        container("web", rundir, ASGI, output, USER) as web,
        container("side", rundir, SIDECAR, output, USER) as side,
    ):
        pod = Pod(web, side, rundir, log)
        wait_until(lambda: len(pod.files()) == 6, 10)
        yield pod


def test_the_sidecar_answers_for_all_workers_of_another_container(pod: Pod) -> None:
    """By process ids that mean nothing in its own, from a host of another name."""
    pids = pod.side.pids()
    profile = pod.side.ask("/pprof/profile?seconds=0.3")
    stacks = pod.side.ask("/stacks")
    one = pod.side.ask(f"/stacks?worker={pids[0]}")
    targets = pod.side.ask("/targets?by=worker").json()
    trace = pod.side.ask(f"/trace?seconds=0.1&worker={pids[1]}")
    put = pod.side.ask("/settings", "PUT", json={"cpu_hz": 50, "ttl": "1m"})

    assert len(pids) == 2
    assert {user for _, user in pod.files().values()} == {USER}
    assert sorted(pids) == sorted(pod.web.pids())
    assert profile.headers[HEADER] == stacks.headers[HEADER] == "2/2"
    assert {"workers: 2/2"} <= set(decode(profile.content).comments)
    assert [f"=== worker {pid} ===" in stacks.text for pid in pids] == [True, True]
    assert (one.status_code, trace.status_code) == (200, 200)
    assert [int(group["labels"]["pid"]) for group in targets] == sorted(pids)
    assert put.json()["holds_for"] == "all workers of this host"


def test_the_sidecar_sees_workers_that_are_stuck(pod: Pod) -> None:
    """Where a loop stands in a busy loop, and what a worker left that holds its
    interpreter."""
    with ThreadPoolExecutor(2) as pool:
        turning = pool.submit(pod.web.get, "/on-loop/turns?seconds=1")
        time.sleep(0.4)
        busy = pod.side.ask("/stacks")
        turning.result()
        holding = pool.submit(pod.web.get, "/on-loop/holds?seconds=3")
        time.sleep(1.5)
        held = pod.side.ask("/stacks")
        holding.result()

    assert busy.headers[HEADER] == "2/2"
    assert "    turns " in busy.text
    assert held.headers[HEADER] == "1/2"
    assert "did not answer in time; its last samples, " in held.text
    assert "    holds " in held.text


def test_a_second_container_is_kept_out_of_the_run_directory(pod: Pod) -> None:
    """A copy of the service with the same process ids takes no file of the living away
    and is in no answer of theirs; it says why, and answers for itself."""
    before, pids = pod.files(), sorted(pod.side.pids())
    with container("copy", pod.rundir, ASGI, user=USER) as copy:
        wait_until(
            lambda: "another container" in copy.ask("/selfcheck").json()["rundir"], 5
        )
        time.sleep(1.0)  # every worker of it has tried
        shares = {copy.ask("/stacks").headers[HEADER] for _ in range(4)}
        listed = copy.ask("/workers")
        heap = copy.ask("/pprof/heap")
        during, seen = pod.files(), sorted(pod.side.pids())
        stacks = pod.side.ask("/stacks")

    assert shares == {"1/?"}
    assert len(listed.json()["workers"]) == 1
    assert listed.headers[HEADER] == "1/?"
    assert heap.headers[HEADER] == "1/?"
    assert during == before
    assert seen == pids
    assert stacks.headers[HEADER] == "2/2"


def test_an_exclusive_capture_is_one_over_all_containers(pod: Pod) -> None:
    """A trace by way of the sidecar keeps out one by way of a worker; who holds it is
    seen by the kernel's lock, whatever its process id."""
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(pod.side.ask, "/trace?seconds=1.2")
        time.sleep(0.5)
        second = pod.web.ask("/trace?seconds=0.1")

    assert first.result().status_code == 200
    assert second.status_code == 429


def boxes(side: Container) -> dict[str, int]:
    """By the id of each black box that was found whose it is."""
    listed = side.ask("/captures").json()
    found = [one for one in listed if one["kind"] == "blackbox"]
    return {one["id"]: int(one["parameters"]["pid"]) for one in found}


def test_a_killed_workers_black_box_is_told_from_the_livings(pod: Pod) -> None:
    """The sidecar finds that of the dead one, and that alone."""
    victim, other = pod.side.pids()
    before = boxes(pod.side)
    pod.web.send(signal.SIGKILL, victim)
    wait_until(lambda: len(boxes(pod.side)) > len(before), 5)
    wait_until(lambda: len(pod.side.pids()) == 2, 10)
    after = boxes(pod.side)

    assert [pid for id, pid in after.items() if id not in before] == [victim]
    assert other in pod.side.pids()
    assert victim not in pod.side.pids()


def test_two_containers_with_one_process_each(rundir: Path, tmp_path: Path) -> None:
    """Both are process 1: the worker is asked, and not taken for the sidecar, which ends
    by SIGTERM although nobody handles signals for a process 1."""
    os.chown(tmp_path, USER, USER)
    with (
        container("web", tmp_path, ALONE, user=USER) as web,
        container("side", tmp_path, SIDECAR, user=USER) as side,
    ):
        wait_until(lambda: side.pids() == [1], 5)
        profile = side.ask("/pprof/profile?seconds=0.1")
        one = side.ask("/stacks?worker=1")
        code = side.stop()
        own = web.pids()

    assert profile.headers[HEADER] == "1/1"
    assert "serve.py" not in one.text
    assert own == [1]
    assert code == 0


@pytest.mark.parametrize("user", [0, USER + 1])
def test_a_sidecar_of_another_user_says_why_it_finds_nobody(
    pod: Pod, user: int
) -> None:
    """In its answer; root's, too: what it wrote the workers could not read."""
    before = pod.files()
    with container("side", pod.rundir, SIDECAR, user=user) as side:
        answer = side.ask("/stacks")
        listed = side.ask("/workers")

    assert answer.status_code == 503
    assert f"belongs to user {USER}" in answer.text
    assert listed.headers[HEADER] == "0/?"
    assert pod.files() == before
