"""Redis is asked over sockets of our own, and nobody waits for it for long."""

import gc
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from redis_servers import RedisServer, dribbling, free_port, redis_server

from stroboscope.errors import FleetError, SettingsError
from stroboscope.fleet.clerk import BUDGET_S, RETRY_S, SLACK_S, Clerk
from stroboscope.fleet.link import Link
from stroboscope.fleet.wire import ANSWER_CAP
from stroboscope.settings import Settings

#: What a machine full of tests adds to a budget.
NOISE_S = 0.5


@contextmanager
def clerk(url: str) -> Iterator[Clerk]:
    made = Clerk(url, lambda: None)
    try:
        yield made
    finally:
        made.stop()


def ping(made: Clerk) -> bytes:
    answer: bytes = made.ask(lambda call: call("PING"))
    return answer


def seconds_of_refusal(made: Clerk) -> float:
    began_s = time.monotonic()
    with pytest.raises(FleetError):
        ping(made)
    return time.monotonic() - began_s


def test_a_password_and_a_database_are_used(tmp_path: Path) -> None:
    """And a wrong password is said, without being told."""
    with redis_server(tmp_path, requirepass="hunter2hunter2") as server:
        link = Link(server.url.replace("/0", "/3"))
        link.call(("SET", "there", "yes"), time.monotonic() + 1)
        link.close()
        wrong = Link(server.url.replace("hunter2hunter2", "sesame-open"))

        assert server.run("INFO", "keyspace")["db3"]["keys"] == 1
        with pytest.raises(FleetError) as refused:
            wrong.call(("PING",), time.monotonic() + 1)
        assert "sesame" not in str(refused.value)


def test_tls_is_spoken_and_the_certificate_verified(tmp_path: Path) -> None:
    """By the authority named in the URL; another's server is not talked to."""
    authority, other = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    authority.cert_pem.write_to_path(tmp_path / "ca")
    other.cert_pem.write_to_path(tmp_path / "other")
    tls = {
        "tls-port": str(port := free_port()),
        "tls-cert-file": str(tmp_path / "cert"),
        "tls-key-file": str(tmp_path / "key"),
        "tls-auth-clients": "no",
    }
    with redis_server(tmp_path / "redis", **tls):
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={tmp_path}/"
        link = Link(url + "ca")
        long = "x" * 200_000

        assert link.call(("ECHO", long), time.monotonic() + 2) == long.encode()
        link.close()
        with pytest.raises(FleetError):
            Link(url + "other").call(("PING",), time.monotonic() + 2)


@pytest.mark.parametrize(
    "query",
    ["ssl_cert_reqs=none", "ssl_check_hostname=false", "socket_timeout=60", "db=x"],
)
def test_a_url_cannot_switch_verification_off(query: str) -> None:
    """Nor anything else that is not for it to say."""
    with pytest.raises(SettingsError):
        Link(f"rediss://:sesame@127.0.0.1/?{query}")


def test_a_url_stays_secret() -> None:
    """In the settings' own form, and in what is said of a wrong one."""
    kept = Settings(redis_url="redis://:sesame@cache/0")
    with pytest.raises(SettingsError) as refused:
        Settings(redis_url="http://:sesame@cache/0")

    assert "sesame" not in repr(kept)
    assert "sesame" not in str(refused.value)


def test_an_answer_that_is_too_long_is_not_read(server: RedisServer) -> None:
    """Who can write there cannot fill our memory."""
    server.run("SETRANGE", "long", str(ANSWER_CAP + 10), "x")
    link = Link(server.url)

    with pytest.raises(FleetError, match="too long"):
        link.call(("GET", "long"), time.monotonic() + 5)
    assert link.call(("PING",), time.monotonic() + 1) == b"PONG"
    link.close()


def test_a_connection_that_redis_has_closed_is_made_anew(server: RedisServer) -> None:
    """Whoever asks next does not notice."""
    with clerk(server.url) as made:
        ping(made)
        server.run("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

        assert ping(made) == b"PONG"
        assert made.failures == 0


def test_a_redis_that_stands_still_costs_one_budget(server: RedisServer) -> None:
    """Those who ask after that are told at once; it is found again by itself."""
    with clerk(server.url) as made:
        ping(made)
        server.pause()
        first = seconds_of_refusal(made)
        rest = [seconds_of_refusal(made) for _ in range(50)]
        server.go_on()

    assert BUDGET_S / 2 < first < BUDGET_S + SLACK_S + NOISE_S
    assert sum(rest) < 0.2


@pytest.mark.parametrize("kind", ["nobody", "black hole", "no such host"])
def test_a_redis_that_is_not_there_costs_no_more(kind: str) -> None:
    """Nobody listens; packets vanish; its name means nothing."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:  # nobody accepts: the next ones hang
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        place = {
            "nobody": f"127.0.0.1:{free_port()}",
            "black hole": f"127.0.0.1:{port}",
            "no such host": "redis.invalid:6379",
        }[kind]
        with clerk(f"redis://{place}") as made:
            took = seconds_of_refusal(made)
        for one in waiting:
            one.close()

    assert took < BUDGET_S + SLACK_S + NOISE_S


def test_an_answer_byte_by_byte_is_not_waited_for(server: RedisServer) -> None:
    """The budget is for the whole answer, not for each piece of it."""
    with dribbling(server.port, 0.1) as port, clerk(f"redis://127.0.0.1:{port}") as one:
        took = seconds_of_refusal(one)

    assert took < BUDGET_S + SLACK_S + NOISE_S


def test_a_forked_child_has_a_connection_of_its_own(server: RedisServer) -> None:
    """The parent's goes on, and no answer goes to the wrong one."""
    made = Clerk(server.url, lambda: None)
    os.register_at_fork(after_in_child=made.after_fork)
    made.ask(lambda call: call("SET", "who", "parent"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            seen = made.ask(lambda call: call("CLIENT", "ID"))
            made.ask(lambda call: call("SET", "child", str(seen)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    own = made.ask(lambda call: call("CLIENT", "ID"))
    made.stop()

    assert int(server.run("GET", "child")) > own


def test_nothing_is_left_of_a_clerk_that_is_stopped(server: RedisServer) -> None:
    """No thread, no connection, no descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    threads = len(os.listdir("/proc/self/task"))
    for _ in range(3):
        with clerk(server.url) as made:
            ping(made)
    ends_s = time.monotonic() + 5
    while len(os.listdir("/proc/self/task")) > threads:
        assert time.monotonic() < ends_s
        time.sleep(0.02)
    gc.collect()

    assert len(os.listdir("/proc/self/fd")) <= before


def test_many_who_ask_at_once_are_all_answered(server: RedisServer) -> None:
    """Each its own answer."""
    found: dict[int, bytes] = {}
    with clerk(server.url) as made:

        def ask(number: int) -> None:
            found[number] = made.ask(lambda call: call("ECHO", str(number)))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert found == {n: str(n).encode() for n in range(40)}


def test_attempts_to_find_it_are_seconds_apart() -> None:
    """However often the thread turns."""
    with clerk(f"redis://127.0.0.1:{free_port()}") as made:
        seconds_of_refusal(made)

        assert not made.is_due()
        assert RETRY_S >= 3
