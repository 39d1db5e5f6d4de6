"""One capture for each share link, whichever worker of the host is asked."""

import threading
import time
from pathlib import Path

import httpx
import pytest
from workers import Worker, worker, workers

from stroboscope.auth.tokens import Tokens
from stroboscope.endpoints.shares import Openings
from stroboscope.settings import Settings
from stroboscope.workers.folder import Folder

pytestmark = pytest.mark.slow

TARGET = "/pprof/profile?seconds=0.5"


def made(one: Worker, **more: object) -> str:
    """The path of a new link."""
    answer = one.ask("/share", method="POST", json={"path": TARGET, **more}, timeout=30)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["url"]).removeprefix("/debug")


def opened(one: Worker, link: str) -> httpx.Response:
    """By somebody without a token."""
    transport = httpx.HTTPTransport(uds=str(one.socket))
    with httpx.Client(transport=transport, timeout=30) as client:
        return client.get(f"http://localhost/debug{link}")


def test_a_link_is_one_capture_on_all_workers(tmp_path: Path) -> None:
    """Taken by whoever is asked first, kept by whoever made it: the others hand it on."""
    with workers(tmp_path, "burn('a', 0.3)", "", "") as three:
        for link in (made(three[0]), made(three[1], keep=True)):
            first = opened(three[2], link)
            assert first.status_code == 200, first.text
            assert {opened(one, link).content for one in three} == {first.content}


def test_a_link_is_one_capture_while_it_is_taken(tmp_path: Path) -> None:
    """Asked of all workers at once: one takes it, the others say when to come again."""
    with workers(tmp_path, "burn('a', 0.3)", "", "") as three:
        link = made(three[0])
        answers: list[httpx.Response] = []
        asked = [
            threading.Thread(target=lambda one=one: answers.append(opened(one, link)))
            for one in three
        ]
        for thread in asked:
            thread.start()
        for thread in asked:
            thread.join()
        after = {opened(one, link).content for one in three}

    good = {one.content for one in answers if one.status_code == 200}
    assert {one.status_code for one in answers} <= {200, 429}
    assert len(good) == 1
    assert good == after


def test_a_link_dies_with_the_worker_that_has_it(tmp_path: Path) -> None:
    """Gone, not taken anew; one that could not be taken is taken by the next."""
    with workers(tmp_path, "", "") as (one, two):
        link = made(one)
        assert opened(two, link).status_code == 200
        two.process.kill()
        two.process.wait()
        gone = opened(one, link)

    assert (gone.status_code, gone.text) == (404, "the artefact is gone\n")


def test_a_link_nobody_waited_for_can_be_opened_again(tmp_path: Path) -> None:
    """By way of another worker: who hung up took nothing."""
    with workers(tmp_path, "", "") as (one, two):
        link = made(one)
        transport = httpx.HTTPTransport(uds=str(one.socket))
        with (
            httpx.Client(transport=transport) as client,
            pytest.raises(httpx.ReadTimeout),
        ):
            client.get(f"http://localhost/debug{link}", timeout=0.2)
        time.sleep(0.4)
        answer = opened(two, link)

    assert answer.status_code == 200


def test_claims_are_bounded_and_end(tmp_path: Path) -> None:
    """They go with their links; another version's are nobody's; no folder, no claim."""
    folder = Folder(str(tmp_path), "shop")
    ours = Openings(folder=folder)
    assert ours.claim("old", time.time() - 1) == ""
    folder_text = b'{"old": ["1-a", 5], "odd": 7, "new": ["1-a", 99999999999]}'
    folder.write("links", folder_text)
    assert ours.claim("new", time.time() + 60) == "1-a"
    assert ours.claim("odd", time.time() + 60) == ""
    assert ours.holder("new") == "1-a"
    assert ours.holder("old") == ""
    ours.unclaim("new")
    assert ours.holder("new") == "1-a"
    ours.unclaim("odd")
    assert ours.holder("odd") == ""

    nowhere = Openings(folder=Folder("/proc/nowhere", "shop"))
    assert nowhere.claim("new", time.time() + 60) == ""
    assert nowhere.holder("new") == ""


def test_a_token_travels_with_its_end(tmp_path: Path) -> None:
    """A link made by way of another worker lives as long as one made here."""
    with worker(tmp_path) as one, worker(tmp_path) as two:
        tokens = Tokens(Settings(keys=(one.key,), service="shop"))
        answer = one.ask(
            f"/share?worker={two.pid}",
            method="POST",
            json={"path": TARGET},
            headers={"Authorization": f"Bearer {tokens.mint(['profile'], 400)}"},
        )

    assert answer.status_code == 201
    assert 390 <= answer.json()["expires_in"] <= 400
