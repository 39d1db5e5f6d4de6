"""A link opens one path, for a while."""

import json

from asking import (
    SETTINGS,
    FakeClock,
    authorised,
    request,
)

from stroboscope._http.messages import Response
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
