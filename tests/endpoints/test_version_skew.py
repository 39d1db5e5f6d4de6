"""Workers of several versions behind one port, as during a rolling restart.

The other one is made by hand: it answers what it is told to, at a worker's socket.
"""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
from counting import nothing_leaks
from workers import Worker, worker

from stroboscope.formats.pprof import encode
from stroboscope.formats.pprof_reader import decode
from stroboscope.formats.profile import Profile, Sample, ValueType
from stroboscope.workers.folder import Folder
from stroboscope.workers.members import Members

HEADER = "X-Stroboscope-Workers"
PPROF, JSON, TEXT = "application/octet-stream", "application/json", "text/plain"
METRICS = "text/plain; version=0.0.4; charset=utf-8"
MINE = f"worker {os.getpid()} "


class Peer:
    """This process as a worker of another version."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self.answer = b""
        threading.Thread(target=self._run, daemon=True).start()

    def says(
        self, body: object, kind: str = JSON, head: str = "HTTP/1.1 200 OK"
    ) -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = f"Content-Type: {kind}\r\n" if kind else ""
        self.answer = (
            f"{head}\r\n{named}X-Of-Tomorrow: 1\r\nContent-Length: {len(text)}\r\n\r\n"
        ).encode() + text

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                with connection:
                    asked = b""
                    while b"\r\n\r\n" not in asked and (more := connection.recv(65536)):
                        asked += more
                    connection.sendall(self.answer)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Worker, Peer]]:
    base = tmp_path_factory.mktemp("skew")
    with worker(base) as one:
        members = Members(Folder(str(base), "shop"))
        entered = members.enter()
        listening = socket.socket(fileno=entered.detach())
        peer = Peer(listening)
        peer.says([])
        one.ask("/stacks")  # what the first answer makes stays
        try:
            with nothing_leaks([one.pid]):
                yield one, peer
        finally:
            members.leave()
            listening.shutdown(socket.SHUT_RDWR)
            listening.close()


def profile(*types: tuple[str, str], **changes: object) -> bytes:
    made = Profile(
        sample_types=tuple(ValueType(*one) for one in types),
        samples=[Sample((), (7,) * len(types), (("new", "label"),))],
        period_type=ValueType("goroutine", "count"),
        period=1,
    )
    return encode(replace(made, **changes))  # type: ignore[arg-type]


PROFILES = {
    "other types": (profile(("goroutine", "count"), ("age", "ns")), "cannot be merged"),
    "no profile": (b"\x1f\x8bnonsense", "cannot be merged"),
    "nothing": (b"", "cannot be merged"),
    "cut off": (profile(("goroutine", "count"))[:-30], "cannot be merged"),
}


@pytest.mark.parametrize("case", PROFILES)
def test_h42_a_profile_of_another_shape_is_left_out(
    both: tuple[Worker, Peer], case: str
) -> None:
    """And named: the worker that was asked is never left out for it."""
    one, peer = both
    body, said = PROFILES[case]
    peer.says(body, PPROF)

    answer = one.ask("/pprof/goroutine")

    comments = decode(answer.content).comments
    assert answer.headers[HEADER] == "1/2"
    assert any(c.startswith(MINE) and said in c for c in comments), comments
    pids = {dict(s.labels)["pid"] for s in decode(answer.content).samples}
    assert pids == {str(one.pid)}


def test_h42_labels_and_comments_of_tomorrow_are_merged(
    both: tuple[Worker, Peer],
) -> None:
    """Where a profile counts the same, whatever else it says."""
    one, peer = both
    peer.says(profile(("goroutine", "count"), comments=("of tomorrow",)), PPROF)

    answer = one.ask("/pprof/goroutine")

    merged = decode(answer.content)
    assert answer.headers[HEADER] == "2/2"
    assert "of tomorrow" in merged.comments
    assert {"new": "label", "pid": str(os.getpid())} in [
        dict(s.labels) for s in merged.samples
    ]


#: Path, what the other answers, and whether that can be joined.
DOCUMENTS = {
    "list for an object": ("/labels", [], False),
    "object for a list": ("/stalls", {"version": 2, "stalls": []}, False),
    "list of no objects": ("/stalls", [1, "two", None], False),
    "unknown fields": ("/stalls", [{"of": "tomorrow"}], True),
    "number": ("/labels", 2, False),
    "null": ("/labels", None, False),
    "unknown members": ("/labels", {"of": "tomorrow"}, True),
    "no JSON": ("/labels", b"{", False),
    "deep": ("/labels", b"[" * 100_000, False),
    "workers, other shape": ("/workers", [1], False),
    "workers, no pid": ("/workers", {"of": "tomorrow"}, True),
    "workers, no JSON": ("/workers", b"<html>", False),
    "tasks, other shape": ("/tasks", {"recorder": 2, "types": 3}, False),
    "tasks, no recorder": ("/tasks", {"pid": 1}, True),
    "checked": ("/selfcheck", {"version": 2}, True),
    "collections": ("/gc", "none", False),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_h42_a_document_of_another_version_breaks_no_answer(
    both: tuple[Worker, Peer], case: str
) -> None:
    """It is joined where it can be, or else counted as missing and named."""
    one, peer = both
    path, body, is_joined = DOCUMENTS[case]
    peer.says(body)

    answer = one.ask(path, "admin", headers={"Accept": JSON})

    assert answer.status_code == 200, answer.text
    assert answer.headers[HEADER] == ("2/2" if is_joined else "1/2")
    if path == "/workers":
        is_named = '"failure"' in answer.text
    else:
        is_named = MINE in answer.headers.get("X-Stroboscope-Missing", "")
    assert is_named != is_joined


@pytest.mark.parametrize("path", ["/tasks", "/captures"])
@pytest.mark.parametrize(
    "body",
    [{"of": "tomorrow"}, {"recorder": {"events": "many"}}, [{"of": "tomorrow"}], [1]],
)
def test_h42_a_page_is_drawn_beside_another_version(
    both: tuple[Worker, Peer], path: str, body: object
) -> None:
    """Of what can be joined."""
    one, peer = both
    peer.says(body)

    answer = one.ask(path, "admin", headers={"Accept": "text/html"})

    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.headers[HEADER] in ("1/2", "2/2")


BROKEN = {
    "no metrics": b"# \n\n#\n# HELP\nname\n{} 1\n\xff\xfe 3\n",
    "nothing": b"",
}


@pytest.mark.parametrize("case", BROKEN)
def test_h42_metrics_of_another_version_break_no_scrape(
    both: tuple[Worker, Peer], case: str
) -> None:
    """What is no sample of a metric is left out."""
    one, peer = both
    own = one.ask("/metrics?worker=1", "metrics")
    peer.says(BROKEN[case], METRICS)

    answer = one.ask("/metrics", "metrics")

    assert own.status_code == 404
    assert answer.status_code == 200
    lines = [line for line in answer.text.splitlines() if line[:1] != "#"]
    assert all(" " in line and 'pid="' in line for line in lines), lines


HEADS = {
    "unknown path": (("Unknown", "text/plain", "HTTP/1.1 404 Not Found"), 404),
    "no type": ((b"text", "", "HTTP/1.1 200 OK"), 200),
    "another protocol": ((b"", TEXT, "SMTP ready"), 503),
    "no status": ((b"", TEXT, "HTTP/1.1 soon"), 503),
}


@pytest.mark.parametrize("case", HEADS)
def test_h42_answers_of_another_version_are_named(
    both: tuple[Worker, Peer], case: str
) -> None:
    """One that knows no such path, or does not speak as we do."""
    one, peer = both
    says, alone_status = HEADS[case]
    peer.says(*says)

    joined = one.ask("/stacks")
    alone = one.ask(f"/labels?worker={os.getpid()}", "admin")

    assert joined.headers[HEADER] == "1/2"
    assert MINE in joined.text
    assert alone.status_code == alone_status
