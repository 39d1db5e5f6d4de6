"""Stuck means stuck: whoever can still be asked answers, about those that cannot."""

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import GUNICORN, UVICORN, serving, token

from stroboscope.formats.pprof_reader import decode

APP, THREADS = "stalling_site:app", "stalling_site:threads"
SERVERS = {
    "uvicorn": (UVICORN + "--workers 2 --timeout-worker-healthcheck 60", APP),
    "gunicorn": (GUNICORN + "-w 2 -k uvicorn.workers.UvicornWorker", APP),
    "gthread": (GUNICORN + "-w 2 -k gthread --threads 2", THREADS),
}
#: The interpreter can be had, now and then: the worker itself answers.
ANSWERS = ("sleeps", "turns", "deadlocks")
HOLDS = ("holds", "matches")


def headers(**more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token('profile', 'metrics')}", **more}


def through(folder: Path, process: int, path: str, timeout: float = 20) -> Any:
    """A GET at a worker's own socket."""
    transport = httpx.HTTPTransport(uds=str(folder / f"{process}.sock"))
    with httpx.Client(transport=transport, base_url="http://localhost") as client:
        return client.get(path, headers=headers(), timeout=timeout)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two workers that both listen, and have each made their file of samples."""

    kind: str
    base: str
    shop: Path
    both: list[int]

    def beside(self, one: int) -> int:
        """The other one."""
        return next(other for other in self.both if other != one)

    def keep(self, way: str, seconds: float) -> str:
        """Be kept so long; the process that was. Returns when it is over."""
        path = f"/{way}/{seconds}"
        if self.kind != "gthread":
            path = f"/on-loop/{way}?seconds={seconds}"
        return httpx.get(self.base + path, timeout=60).text.strip('"')


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Pair]]:
    """The workers of a kind: who was stuck goes on, and serves the next test."""
    with ExitStack() as served:

        @cache
        def made(kind: str) -> Pair:
            folder = tmp_path_factory.mktemp(kind)
            command, app = SERVERS[kind]
            base, _ = served.enter_context(
                serving(command, app, STROBOSCOPE_RUNDIR=str(folder))
            )
            shop = folder / "shop"
            for _ in range(200):
                httpx.get(base + "/ready", timeout=20)
                found = [int(p.stem) for p in shop.glob("*.samples")]
                if len(found) == 2 and len(list(shop.glob("*.sock"))) == 2:
                    return Pair(kind, base, shop, found)
                time.sleep(0.05)
            raise AssertionError("two workers did not come up")

        yield made


@contextmanager
def stuck(pair: Pair, way: str, seconds: float) -> Iterator[int]:
    """The worker that is stuck by now; over when it no longer is."""
    answers: list[str] = []
    asked = threading.Thread(target=lambda: answers.append(pair.keep(way, seconds)))
    asked.start()
    victims: list[int] = []
    ends = time.monotonic() + seconds
    while not victims and time.monotonic() < ends:
        victims = [
            one
            for one in pair.both
            if f" {way} "
            in through(pair.shop, pair.both[0], f"/debug/stacks?worker={one}").text
        ]
    (victim,) = victims
    yield victim
    asked.join()
    assert answers == [str(victim)]


@pytest.mark.slow
@pytest.mark.parametrize("way", ANSWERS)
@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn"])
def test_h27_stacks_answer_while_the_loop_is_stuck(
    kind: str, way: str, pair_of: Callable[..., Pair]
) -> None:
    """In C that gave the interpreter up, in a busy loop, in a deadlock: through the
    worker's own socket and the other worker, and a CPU profile as well."""
    pair = pair_of(kind)
    shop, took = pair.shop, []
    with stuck(pair, way, 4) as victim:
        for _ in range(3):
            began = time.monotonic()
            own = through(shop, victim, f"/debug/stacks?worker={victim}")
            took.append(time.monotonic() - began)
        both = through(shop, pair.beside(victim), "/debug/stacks")
        profile = through(shop, victim, "/debug/pprof/profile?seconds=0.5")

    assert own.status_code == 200
    assert f" {way} " in own.text
    assert both.headers["x-stroboscope-workers"] == "2/2"
    assert f" {way} " in both.text
    assert profile.status_code == 200
    functions = {f.function for s in decode(profile.content).samples for f in s.stack}
    assert (way == "turns") <= ("turns" in functions)
    assert min(took) <= 1.0  # 0.1 s where the machine is not shared


@pytest.mark.slow
@pytest.mark.parametrize("way", HOLDS)
@pytest.mark.parametrize("kind", SERVERS)
def test_h27_who_holds_the_interpreter_is_seen_from_outside(
    kind: str, way: str, pair_of: Callable[..., Pair]
) -> None:
    """The worker answers nobody, asleep or burning in C; another says within a second
    where it is, how old that is, and that it did not answer."""
    pair = pair_of(kind)
    shop = pair.shop
    asked = threading.Thread(target=pair.keep, args=(way, 7))
    asked.start()
    time.sleep(1.2)
    victim, other = _wedged(shop, pair.both)
    moments = [time.monotonic()]
    every = through(shop, other, "/debug/stacks")
    moments.append(time.monotonic())
    one = through(shop, other, f"/debug/stacks?worker={victim}")
    moments.append(time.monotonic())
    profile = through(shop, other, "/debug/pprof/profile?seconds=0.2")
    asked.join()

    assert every.status_code == one.status_code == 200
    assert every.headers["x-stroboscope-workers"] == "1/2"
    assert one.headers["x-stroboscope-workers"] == "0/1"
    for text in (every.text, one.text):
        assert f"worker {victim} did not answer in time; its last samples, " in text
        assert "held the interpreter" in text
        assert f"    {way} " in text
        assert "stalling_site.py:" in text
    took = min(later - sooner for sooner, later in itertools.pairwise(moments))
    assert took <= 1.0 + 0.2  # the machine is shared
    assert profile.headers["x-stroboscope-workers"] == "1/2"


def _wedged(shop: Path, both: list[int]) -> tuple[int, int]:
    """Who does not answer at its own socket, and who does."""
    for one in both:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(0.3)
            probe.connect(str(shop / f"{one}.sock"))
            asked = f"GET /debug/gc?worker={one} HTTP/1.1\r\nHost: localhost\r\n"
            probe.sendall(f"{asked}\r\n".encode())
            try:
                probe.recv(1)
            except TimeoutError:
                return one, next(other for other in both if other != one)
    raise AssertionError("nobody is wedged")


@pytest.mark.slow
def test_h27_a_full_thread_pool_is_no_obstacle(tmp_path: Path) -> None:
    """With every slot of the application's pool asleep, stacks answer."""
    with serving(
        UVICORN, APP, STROBOSCOPE_RUNDIR=str(tmp_path), STROBOSCOPE_SERVICE="shop"
    ) as (base, process):
        httpx.get(base + "/ready")
        asked = [
            threading.Thread(
                target=httpx.get,
                args=(base + "/in-pool/sleeps?seconds=4",),
                kwargs={"timeout": 30},
            )
            for _ in range(40)  # as many as there are slots
        ]
        for thread in asked:
            thread.start()
        time.sleep(1.5)
        began = time.monotonic()
        found = through(tmp_path / "shop", process, "/debug/stacks")
        took = time.monotonic() - began
        for thread in asked:
            thread.join()

    assert found.status_code == 200
    assert found.text.count("    sleeps ") >= 40
    assert took <= 1.0


@pytest.mark.slow
def test_a_stall_with_the_interpreter_held_is_recorded_afterwards(
    tmp_path: Path,
) -> None:
    """By a thread of the pool, while the loop has nothing to run: it names who held."""
    with serving(
        UVICORN, APP, STROBOSCOPE_RUNDIR=str(tmp_path), STROBOSCOPE_SERVICE="shop"
    ) as (base, process):
        for _ in range(30):
            httpx.get(base + "/ready")
            if list((tmp_path / "shop").glob("*.samples")):
                break
            time.sleep(0.1)
        httpx.get(base + "/in-pool/holds?seconds=2", timeout=30)
        time.sleep(0.3)
        found = through(tmp_path / "shop", process, "/debug/stalls").text
        assert os.stat(tmp_path / f"shop/{process}.samples").st_mode & 0o777 == 0o600

    assert "endpoint=/in-pool/{way}" in found
    assert "holds " in found
    assert "the interpreter was held; seen by a signal" in found
