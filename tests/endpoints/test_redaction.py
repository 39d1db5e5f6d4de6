"""No argument, no environment, no local value comes out."""

import gzip
import threading

import pytest
from asking import (
    GETS,
    Ask,
    bearer,
    token,
)


def test_h29_nothing_shows_arguments_or_environment(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret in argv, environment, a local and a thread's name appears nowhere."""
    secret = "canary-7f3a91"
    monkeypatch.setenv("CANARY", secret)
    monkeypatch.setattr("sys.argv", ["app", f"--password={secret}"])
    done = threading.Event()

    def work(local: str) -> None:
        done.wait(30)

    thread = threading.Thread(target=work, args=(secret,), name=f"user {secret}@x!")
    thread.start()
    try:
        for path in GETS:
            for query in ("seconds=0.05", "debug=1", "debug=2"):
                answer = ask(f"/debug{path}?{query}", bearer(token("admin")))
                body = answer.body
                if body[:2] == b"\x1f\x8b":
                    body = gzip.decompress(body)
                assert secret.encode() not in body, (path, query)
    finally:
        done.set()
        thread.join()


def test_h30_no_object_is_asked_for_its_text(ask: Ask) -> None:
    """Stacks of a thread whose locals raise when shown are served all the same."""

    class Loud:
        shown = 0

        def __repr__(self) -> str:
            Loud.shown += 1
            raise RuntimeError

    done = threading.Event()
    thread = threading.Thread(target=lambda loud: done.wait(30), args=(Loud(),))
    thread.start()
    try:
        for path in ("/stacks", "/pprof/goroutine?debug=2"):
            assert ask(f"/debug{path}", bearer(token("profile"))).status == 200
    finally:
        done.set()
        thread.join()

    assert Loud.shown == 0
