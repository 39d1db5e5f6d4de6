"""Native frames of all workers of a real server, under the labels of their requests."""

import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from pprofing import run_pprof
from servers import GUNICORN, UVICORN, serving, token, under_load

from stroboscope.formats.pprof_reader import decode

pytestmark = [pytest.mark.native, pytest.mark.slow]

#: Four clients: two for what each library does.
LOAD = (("/pack",), ("/sign",)) * 2
HEADER = "X-Stroboscope-Workers"
SERVERS = {
    "uvicorn": (UVICORN + "--workers 2", "native_site:app"),
    "gevent-preload": (GUNICORN + "-k gevent -w 2 --preload", "native_site:wsgi"),
}


@pytest.mark.parametrize("name", SERVERS)
def test_workers_go_on_into_c_together(
    name: str, go_pprof: list[str], tmp_path: Path
) -> None:
    """One profile of both: what zlib burnt is under its endpoint, what OpenSSL burnt
    under the other, in libraries that both have at addresses of their own."""
    command, app = SERVERS[name]
    bearer = {"Authorization": f"Bearer {token('profile', 'metrics')}"}
    with serving(command, app) as (base, _), under_load(base, *LOAD):
        for _ in range(100):
            if (
                httpx.get(f"{base}/debug/workers", headers=bearer).headers[HEADER]
                == "2/2"
            ):
                break
            time.sleep(0.1)
        answer = httpx.get(
            f"{base}/debug/pprof/profile?seconds=2&native=1", headers=bearer, timeout=40
        )
    assert answer.status_code == 200, answer.text
    profile = decode(answer.content)

    found: Counter[tuple[str, str]] = Counter()
    for stack, values, labels in profile.samples:
        names = {frame.function for frame in stack}
        for library, function in (("z", "deflate"), ("ssl", "PKCS5_PBKDF2_HMAC")):
            if function in names:
                found[library, dict(labels)["endpoint"]] += values[0]
    assert {*found} == {("z", "/pack"), ("ssl", "/sign")}, profile.comments
    assert min(found.values()) > 5
    assert answer.headers[HEADER] == "2/2"
    paths = [mapping.path for mapping in profile.mappings]
    assert len(paths) == len({*paths})
    file = tmp_path / "both.pb.gz"
    file.write_bytes(answer.content)
    shown = run_pprof(go_pprof, "-tags", "-focus=^deflate$", str(file), home=tmp_path)
    assert "/pack" in shown
    assert "/sign" not in shown
