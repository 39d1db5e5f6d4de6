"""The same surface behind every server, proxy and layer people put before it."""

import time
from pathlib import Path

import httpx
import pytest
import scrapers
from fronts import (
    DJANGO_ASGI,
    DJANGO_WSGI,
    GTHREAD,
    bearer,
    looked_over,
    one_byte_a_second,
    proxied,
)
from servers import FASTAPI, FLASK, HYPERCORN, UVICORN, serving

SERVERS = {
    "uvicorn": (UVICORN, FASTAPI),
    "hypercorn": (HYPERCORN, FASTAPI),
    "gunicorn": (GTHREAD, FLASK),
    "django-gunicorn": (GTHREAD, DJANGO_WSGI),
    "django-uvicorn": (UVICORN, DJANGO_ASGI),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVERS)
def test_h38_every_address_answers_directly(name: str) -> None:
    """With and without the slash, under APPEND_SLASH and GZip: no redirect."""
    command, app = SERVERS[name]
    with serving(command, app) as (base, _):
        looked_over(base)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "app", "mount", "environ"),
    [
        # uvicorn adds the prefix itself, for a proxy that has taken it off.
        (UVICORN + "--root-path /shop", FASTAPI, "/debug", {}),
        (HYPERCORN + "--root-path /shop", FASTAPI, "/shop/debug", {}),
        (GTHREAD, FLASK, "/shop/debug", {"SCRIPT_NAME": "/shop"}),
        (GTHREAD, DJANGO_WSGI, "/shop/debug", {"SCRIPT_NAME": "/shop"}),
    ],
    ids=["uvicorn", "hypercorn", "flask", "django"],
)
def test_h38_under_a_prefix(
    command: str, app: str, mount: str, environ: dict[str, str]
) -> None:
    """The mount moves with the application."""
    with serving(command, app, **environ) as (base, _):
        hidden = "/shop" if mount == "/debug" else ""
        looked_over(base, mount, hidden)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["django-gunicorn", "django-uvicorn"])
def test_h37_djangos_gzip_layer_changes_nothing(name: str) -> None:
    """One gzip layer on a profile and none on text, though the client takes gzip."""
    command, app = SERVERS[name]
    with serving(command, app) as (base, _), httpx.Client(timeout=20) as client:
        for path in ("/pprof/goroutine", "/stacks"):
            with client.stream(
                "GET",
                f"{base}/debug{path}",
                headers=bearer() | {"Accept-Encoding": "gzip"},
            ) as answer:
                raw = b"".join(answer.iter_raw())
            assert answer.headers["Content-Encoding"] == "identity"
            assert int(answer.headers["Content-Length"]) == len(raw)
            if path == "/stacks":
                assert raw.startswith((b"thread ", b"task "))
            else:
                scrapers.check(raw)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uvicorn", "gunicorn"])
def test_h25_behind_a_buffering_proxy(name: str, nginx: str, tmp_path: Path) -> None:
    """Every address through nginx; a client of it that reads a byte a second does not
    keep a capture; one that hangs up ends its capture."""
    command, app = SERVERS[name]
    with (
        serving(command, app) as (base, _),
        proxied(nginx, base, tmp_path) as front,
    ):
        looked_over(front)
        with one_byte_a_second(front, "/debug/stacks"):
            second = httpx.get(
                front + "/debug/pprof/profile?seconds=0.3", headers=bearer(), timeout=20
            )
        for _ in range(6):  # two more than there are windows
            with pytest.raises(httpx.ReadTimeout):
                httpx.get(
                    front + "/debug/pprof/profile?seconds=30",
                    headers=bearer(),
                    timeout=0.3,
                )
            time.sleep(0.4)
        after = httpx.get(
            front + "/debug/pprof/profile?seconds=0.2", headers=bearer(), timeout=20
        )

    assert (second.status_code, after.status_code) == (200, 200)
    scrapers.check(after.content)


@pytest.mark.slow
def test_h17_forwarded_headers_open_nothing_behind_a_trusting_server() -> None:
    """uvicorn that believes everybody: a forged peer is still 401, and counted."""
    command = UVICORN + "--proxy-headers --forwarded-allow-ips *"
    forged = {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "https"}
    with serving(command, FASTAPI) as (base, _):
        statuses = [
            httpx.get(base + "/debug/labels", headers=forged).status_code
            for _ in range(20)
        ]
        good = httpx.get(base + "/debug/labels", headers=forged | bearer())

    assert statuses[0] == 401
    assert set(statuses) == {401, 429}
    assert good.status_code == 200
