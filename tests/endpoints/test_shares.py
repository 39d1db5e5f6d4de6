"""A link opens one path, for a while."""

import json
import logging
from dataclasses import replace

import pytest
from asking import (
    SETTINGS,
    FakeClock,
    authorised,
    request,
)

from stroboscope._http.messages import Response
from stroboscope.auth.pace import BURST
from stroboscope.auth.tokens import Tokens
from stroboscope.endpoints import Surface
from stroboscope.formats.pprof_reader import decode


def test_share_links_open_one_path_for_a_while() -> None:
    """No token needed; GET only; kept artefacts stay the same; revocable."""
    clock = FakeClock()
    surface = Surface(SETTINGS, clock)
    tokens = Tokens(SETTINGS, clock)

    def share(scopes: list[str], **body: object) -> Response:
        asked = request(
            "/debug/share",
            ("authorization", f"Bearer {tokens.mint(scopes, 600)}"),
            ("content-type", "application/json"),
            method="POST",
        )
        return surface.answer(asked, read_body=lambda: json.dumps(body).encode())

    path = "/pprof/profile?seconds=0.1"
    made = json.loads(share(["profile"], path=path, keep=True).body)
    first = surface.answer(request(made["url"]))
    again = surface.answer(request(made["url"]))
    assert first.status == 200
    assert first.body == again.body
    assert surface.answer(request(made["url"], method="POST")).status == 401
    assert surface.answer(request(made["url"][:-1])).status == 401
    # The link's text is no token, and a token no link.
    text = made["url"].rpartition("/")[2]
    assert surface.answer(authorised("/debug/", text)).status == 401

    assert share(["metrics"], path=path).status == 403
    assert share(["admin"], path="/settings").status == 403
    assert share(["profile"], path=path, ttl="16m").status == 400
    surface.desk.gate.revocations.revoke(made["id"])
    assert surface.answer(request(made["url"])).status == 401

    live = json.loads(share(["profile"], path=path, ttl="1m").body)
    assert decode(surface.answer(request(live["url"])).body).duration_ns > 0
    clock.now_s += 61
    assert surface.answer(request(live["url"])).status == 401


def test_h09_a_revoked_token_takes_its_links_along() -> None:
    """Whoever stole it cannot go on by the links it made; another's go on."""
    surface = Surface(SETTINGS)
    tokens = surface.desk.gate.tokens
    texts = [tokens.mint(["profile"], 600) for _ in "ab"]
    urls = []
    for text in texts:
        asked = authorised("/debug/share", text, "POST")
        asked = replace(
            asked, headers=(*asked.headers, ("content-type", "application/json"))
        )
        answer = surface.answer(asked, read_body=lambda: b'{"path": "/stacks"}')
        urls.append(json.loads(answer.body)["url"])

    stolen = tokens.verify(texts[0]).token_id
    surface.desk.gate.revocations.revoke(stolen)

    assert [surface.answer(request(url)).status for url in urls] == [401, 200]


def test_h44_the_record_of_a_link_names_whose_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By the id of the token it was made with."""
    surface = Surface(SETTINGS)
    link, _ = surface.desk.gate.tokens.mint_share("/stacks", 60, "maker-7")
    with caplog.at_level(logging.INFO, "stroboscope.audit"):
        answer = surface.answer(request(f"/debug/share/{link}"))

    assert answer.status == 200
    assert "token_id=maker-7~" in caplog.text
    assert link not in caplog.text


def test_h22_links_have_their_makers_pace() -> None:
    """Many links of one token ask no faster than the token may."""
    surface = Surface(SETTINGS, FakeClock())
    gate = surface.desk.gate
    urls = [
        f"/debug/share/{gate.tokens.mint_share('/stacks', 60, 'maker')[0]}"
        for _ in range(3)
    ]
    for _ in range(BURST - 1):
        gate.pace.check("maker")

    assert [surface.answer(request(url)).status for url in urls] == [200, 429, 429]


def test_h09_a_link_of_a_certificate_can_be_revoked() -> None:
    """Though its id is the longest there is."""
    surface = Surface(SETTINGS)
    tokens = surface.desk.gate.tokens
    owner = f"certificate:{'x' * 80}"
    link, made = tokens.mint_share("/stacks", 60, owner)
    asked = authorised("/debug/revoke", tokens.mint(["admin"], 60), "POST")
    asked = replace(
        asked, headers=(*asked.headers, ("content-type", "application/json"))
    )
    body = json.dumps({"id": made.token_id}).encode()

    assert made.token_id.startswith(owner)
    assert surface.answer(asked, read_body=lambda: body).status == 200
    assert surface.answer(request(f"/debug/share/{link}")).status == 401
