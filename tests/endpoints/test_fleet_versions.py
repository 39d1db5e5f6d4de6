"""Who wins when hosts and Redis differ; clocks that have nothing in common."""

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from asking import KEY, FakeClock
from redis_servers import RedisServer
from workers import ROOT

from stroboscope.auth.revocation import Revocations
from stroboscope.endpoints.agreement import FLEET, HOST, Agreement
from stroboscope.endpoints.fleet import Fleet
from stroboscope.knobs import Knob, Knobs, whole
from stroboscope.settings import Settings
from stroboscope.workers.folder import Folder


class Host:
    """One worker of a host, which looks at Redis when it is told to."""

    def __init__(self, base: Path, url: str, now_s: float = 1000.0) -> None:
        self.clock = FakeClock()
        self.clock.now_s = now_s
        knobs = [Knob(name, 100, whole(1, 1000), {}, "") for name in ("rate", "depth")]
        self.knobs = Knobs(knobs, self.clock)
        self.told: list[int] = []
        self.knobs.on_change("rate", self.told.append)
        self.revocations = Revocations()
        self.folder = Folder(str(base), "shop")
        settings = Settings(keys=(KEY,), service="shop", redis_url=url)
        self.fleet = Fleet(settings, self.folder)
        self.fleet._due_s = math.inf  # its own thread does not look
        self.agreement = Agreement(
            self.knobs,
            self.revocations,
            self.folder,
            fleet=self.fleet,
            clock=self.clock,
        )

    def look(self) -> None:
        self.agreement.follow(*self.fleet.store_here.look())

    def switch(self, rate: int, version: int | None = None) -> str:
        return self.agreement.change({"rate": rate}, 60.0, version)

    def alone(self) -> Agreement:
        """The agreement of this host as it is without Redis."""
        self.fleet._clerk.tell("gone, says the test")
        return self.agreement


@contextmanager
def pair(tmp_path: Path, server: RedisServer) -> Iterator[tuple[Host, Host]]:
    one, two = (
        Host(tmp_path / "one", server.url, 5.0),
        Host(tmp_path / "two", server.url, 9e8),
    )
    try:
        yield one, two
    finally:
        for host in (one, two):
            host.fleet.stop()
            host.fleet._clerk._link.close()  # looks came by this thread


def back(host: Host) -> None:
    host.fleet._clerk.tell("")


def test_what_is_left_is_the_same_on_clocks_that_differ(
    tmp_path: Path, server: RedisServer
) -> None:
    """By years: nothing of one host's clock is read on another."""
    with pair(tmp_path, server) as (one, two):
        assert one.switch(7) == FLEET
        two.look()
        left = [host.knobs.describe()["rate"]["expires_in"] for host in (one, two)]
        two.clock.now_s += 59
        almost = two.knobs.get("rate")
        two.clock.now_s += 1.1

        assert left[0] == 60
        assert abs(left[1] - 60) < 1
        assert almost == 7
        assert two.knobs.get("rate") == 100
        assert two.told == [7]


def test_after_a_parting_the_higher_version_holds(
    tmp_path: Path, server: RedisServer
) -> None:
    """Whichever host looks first; each says for whom its change held."""
    with pair(tmp_path, server) as (one, two):
        one.switch(7)
        two.look()
        one.alone()
        two.alone()
        assert one.switch(10) == HOST
        assert two.switch(20) == HOST
        assert two.switch(21) == HOST
        back(one)
        back(two)
        one.look()
        two.look()
        one.look()

        assert one.knobs.get("rate") == two.knobs.get("rate") == 21
        assert one.knobs.version == two.knobs.version == 4
        assert one.switch(30, 4) == FLEET


def test_at_the_same_version_what_stands_in_redis_holds(
    tmp_path: Path, server: RedisServer
) -> None:
    """Two hosts have each changed once: the first that comes back."""
    with pair(tmp_path, server) as (one, two):
        one.alone()
        two.alone()
        one.switch(10)
        two.switch(20)
        back(two)
        two.look()
        back(one)
        one.look()
        two.look()

        assert one.knobs.get("rate") == two.knobs.get("rate") == 20
        assert one.told == [10, 20]


def test_what_was_switched_before_there_was_a_fleet_is_no_rival(
    tmp_path: Path, server: RedisServer
) -> None:
    """Of however high a version; but where Redis has nothing it is brought along."""
    with pair(tmp_path, server) as (one, two):
        before = Agreement(two.knobs, two.revocations, two.folder)
        for rate in range(10, 20):
            before.change({"rate": rate}, 600.0, None)
        one.switch(7)
        two.look()
        joined = two.knobs.get("rate")
        server.run("FLUSHALL")
        Agreement(two.knobs, two.revocations, two.folder).change(
            {"rate": 30}, 600.0, None
        )
        two.look()
        one.look()

        assert joined == 7
        assert one.knobs.get("rate") == 30


def test_a_change_that_redis_made_and_did_not_confirm_is_one_change(
    tmp_path: Path, server: RedisServer
) -> None:
    """The answer was lost on the way: the next look finds its own mark."""
    with pair(tmp_path, server) as (one, two):
        write = one.fleet.store.write

        def lost(*arguments: object) -> bool:
            from stroboscope.errors import FleetError

            assert write(*arguments)  # type: ignore[arg-type]
            raise FleetError("lost")

        one.fleet.store.write = lost  # type: ignore[method-assign]
        held = one.switch(7)
        one.look()
        two.look()

        assert held == HOST
        assert one.told == two.told == [7]
        assert one.knobs.version == two.knobs.version == 2


def test_a_writer_who_was_overtaken_begins_anew(
    tmp_path: Path, server: RedisServer
) -> None:
    """Another host came between reading and writing: nothing of its change is lost;
    whoever named a version is refused, and has what the other switched."""
    from stroboscope.errors import KnobConflict

    with pair(tmp_path, server) as (one, two):
        read, others = one.fleet.store.read, [{"depth": 5}]

        def overtaken() -> object:
            found = read()
            if others:
                two.agreement.change(others.pop(), 60.0, None)
            return found

        one.fleet.store.read = overtaken  # type: ignore[assignment,method-assign]
        assert one.switch(7) == FLEET
        both = one.knobs.get("rate"), one.knobs.get("depth")
        others.append({"depth": 6})
        with pytest.raises(KnobConflict):
            one.switch(8, one.knobs.version)
        two.look()

        assert both == (7, 5)
        assert (one.knobs.get("rate"), one.knobs.get("depth")) == (7, 6)
        assert (two.knobs.get("rate"), two.knobs.get("depth")) == (7, 6)


def test_revocations_of_both_sides_of_a_parting_are_joined(
    tmp_path: Path, server: RedisServer
) -> None:
    """And of the moments the later one."""
    with pair(tmp_path, server) as (one, two):
        one.alone()
        assert one.agreement.revoke("a") == HOST
        one.agreement.revoke_before(50.0)
        assert two.agreement.revoke("b") == FLEET
        two.agreement.revoke_before(40.0)
        back(one)
        one.look()
        two.look()

        for host in (one, two):
            assert host.revocations.ids() == ["a", "b"]
            assert host.revocations.not_before_s == 50.0


def test_a_worker_without_redis_py_does_not_start(tmp_path: Path) -> None:
    """It says what to install, and not the URL."""
    code = """
import sys
sys.modules["redis"] = None
from stroboscope import Settings
from stroboscope.endpoints import Surface
Surface(Settings(keys=sys.argv[1:2], redis_url=sys.argv[2]))
"""
    url = "redis://:sesame@localhost"
    done = subprocess.run(
        [sys.executable, "-c", code, KEY, url], capture_output=True, text=True, cwd=ROOT
    )

    assert "SettingsError: redis_url needs stroboscope[redis]" in done.stderr
    assert "sesame" not in done.stderr


def test_without_a_url_redis_py_is_not_loaded() -> None:
    """Nor is there a thread."""
    code = """
import sys
from stroboscope import Settings
from stroboscope.endpoints import Surface
surface = Surface(Settings(keys=sys.argv[1:]))
print("redis" in sys.modules, surface.desk.fleet)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, KEY], capture_output=True, text=True, cwd=ROOT
    )

    assert done.stdout == "False None\n", done.stderr
