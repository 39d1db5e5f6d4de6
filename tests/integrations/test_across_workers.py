"""What is one for all workers, asked of two of them over their one port."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from fronts import DJANGO_WSGI, GTHREAD, bearer
from servers import FASTAPI, FLASK, HYPERCORN, UVICORN, serving

#: A connection is asked again some seconds later, on a busy machine.
SERVERS = {
    "uvicorn": (UVICORN + "--workers 2 --timeout-keep-alive 30", FASTAPI),
    "hypercorn": (HYPERCORN + "-w 2 --keep-alive 30", FASTAPI),
    "gunicorn": (GTHREAD + " -w 2 --keep-alive 30", FLASK),
    "django": (GTHREAD + " -w 2 --keep-alive 30", DJANGO_WSGI),
}
#: More connections than it takes for both workers to accept some.
CONNECTIONS_CAP = 200
#: What a worker may take to hear of a revocation.
HEARD_S = 5.0


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """Kept alive, so that all that is asked by it is asked of the same worker."""

    def __init__(self, base: str) -> None:
        self._http = http.client.HTTPConnection(
            base.removeprefix("http://"), timeout=20
        )
        found = json.loads(self.ask("/selfcheck").body)
        self.worker = int(found["process"])
        self.both = len(found.get("workers", ())) == 2

    def ask(
        self, path: str, method: str = "GET", body: object = None, scope: str = "admin"
    ) -> Answer:
        headers = bearer(scope) if scope else {}
        text = None
        if body is not None:
            text = json.dumps(body)
            headers["Content-Type"] = "application/json"
        self._http.request(method, f"/debug{path}", text, headers)
        answer = self._http.getresponse()
        named = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, named, answer.read())

    def close(self) -> None:
        self._http.close()


@pytest.fixture(scope="module", params=SERVERS)
def base(request: pytest.FixtureRequest) -> Iterator[str]:
    command, app = SERVERS[request.param]
    with serving(command, app) as (address, _):
        yield address


def connected(base: str, each: int, stack: ExitStack) -> list[list[Connection]]:
    """So many connections to each of the two workers, when these have met."""
    found: dict[int, list[Connection]] = {}
    for _ in range(CONNECTIONS_CAP):
        one = Connection(base)
        kept = found.setdefault(one.worker, [])
        if not one.both or len(kept) == each:
            one.close()
            time.sleep(0 if one.both else 0.05)
            continue
        stack.callback(one.close)
        kept.append(one)
        full = [all for all in found.values() if len(all) == each]
        if len(full) == 2:
            return full
    raise AssertionError({pid: len(some) for pid, some in found.items()})


@pytest.mark.slow
def test_h19_one_trace_at_a_time_for_all_workers(base: str) -> None:
    """Of ten at once, five to each worker, one is answered; nine are told to come back,
    to the byte alike. The next one after it is answered."""
    with ExitStack() as stack:
        one, other = connected(base, 5, stack)
        begin = threading.Barrier(10)
        answers: list[Answer] = []

        def ask(client: Connection) -> None:
            begin.wait()
            answers.append(client.ask("/trace?seconds=1.5", scope="trace"))

        asking = [threading.Thread(target=ask, args=(c,)) for c in (*one, *other)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        after = Connection(base)
        stack.callback(after.close)
        next_one = after.ask("/trace?seconds=0.1", scope="trace")

    refused = [answer for answer in answers if answer.status == 429]
    assert sorted(answer.status for answer in answers) == [200] + [429] * 9
    assert {answer.body for answer in refused} == {b"a trace is being taken\n"}
    assert {answer.headers["retry-after"] for answer in refused} <= {"1", "2", "3"}
    assert {answer.headers["x-go-pprof"] for answer in refused} == {"1"}
    assert next_one.status == 200
    assert len(next_one.body) > 100


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [
        {"path": "/pprof/goroutine"},
        {"path": "/stacks", "keep": True},
        {"path": "/pprof/profile?seconds=0.2"},
        {"path": "/pprof/profile?seconds=0.2", "keep": True},
        {"path": "/trace?seconds=0.2"},
    ],
    ids=lambda asked: " ".join(map(str, asked.values())),
)
def test_h09_a_link_is_the_same_by_every_worker(
    base: str, asked: dict[str, object]
) -> None:
    """Made by one, opened by the other without a token, with the same bytes by both; a
    revocation by the other is heard by the one that made it."""
    with ExitStack() as stack:
        ((maker,), (other,)) = connected(base, 1, stack)
        made = json.loads(maker.ask("/share", "POST", {**asked, "ttl": "1m"}).body)
        link = made["url"].removeprefix("/debug")
        opened = [one.ask(link, scope="") for one in (other, maker, other)]
        revoked = other.ask("/revoke", "POST", {"id": made["id"]})
        told_s = time.monotonic()
        gone = [other.ask(link, scope="")]
        while gone[-1].status != 401 or len(gone) < 2:
            gone.append(maker.ask(link, scope=""))
            assert time.monotonic() < told_s + HEARD_S
            time.sleep(0.05)

    assert [one.status for one in opened] == [200] * 3
    assert len({one.body for one in opened}) == 1
    assert len(opened[0].body) > 50
    assert json.loads(revoked.body)["holds_for"] == "all workers of this host"
    assert (gone[0].status, gone[0].body) == (401, b"unauthorized\n")
    assert gone[-1].body == b"unauthorized\n"
