"""What every front is asked, and nginx as one of them."""

import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import scrapers
from servers import GUNICORN, token

from stroboscope.endpoints.profiles import NAMES
from stroboscope.endpoints.routes import ROUTES

DJANGO_WSGI, DJANGO_ASGI = "django_site:app", "django_site:asgi"


GTHREAD = GUNICORN + "-k gthread --threads 8"


GETS = [
    path
    for route in ROUTES
    if "GET" in route.actions
    for path in route.paths
    if "{" not in path
]


PROFILES = ("profile", *NAMES, "wall")


ALL = ("metrics", "profile", "trace", "admin")


def bearer(*scopes: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(*(scopes or ALL))}"}


def looked_over(base: str, mount: str = "/debug", hidden: str = "") -> None:
    """Every documented address in its place: direct answers, and sound profiles.

    `hidden` is a prefix that a proxy would take off.
    """
    with httpx.Client(base_url=base, headers=bearer(), timeout=30) as client:
        for path in GETS:
            short = (
                "seconds=0.1"
                if path.endswith(("prof", "profile", "wall", "trace"))
                else ""
            )
            answer = client.get(f"{mount}{path}", params=short)
            expected = {404} if path == "/pprof/cmdline" else {200, 501}
            assert answer.status_code in expected, (path, answer.text[:200])
            assert answer.headers["Cache-Control"] == "no-store, private", path
            # The carrier's client undoes what a layer between may have added.
            if path.removeprefix("/pprof/") in PROFILES:
                scrapers.check(answer.content)
            if number := answer.headers.get("X-Stroboscope-Capture"):
                kept = client.get(f"{mount}/captures/{number}")
                assert kept.content == answer.content, path
        for bad in ("/nothing", "/pprof/%0d%0aSet-Cookie:x", "//", "/./labels"):
            answer = client.get(f"{mount}{bad}")
            assert answer.status_code in (200, 404), bad
            assert "set-cookie" not in answer.headers
        for headers in (
            {"Authorization": "Bearer bad"},
            {"Authorization": "Basic eDp5"},
        ):
            refused = client.get(f"{mount}/pprof/heap", headers=headers)
            assert (refused.status_code, refused.text) == (401, "unauthorized\n")
            challenges = refused.headers["WWW-Authenticate"]
            assert 'Bearer realm="stroboscope"' in challenges
            assert 'Basic realm="stroboscope"' in challenges
            assert refused.headers["X-Go-Pprof"] == "1"
        for page in ("/", "/pprof/"):
            links = re.findall('href="([^"]+)"', client.get(mount + page).text)
            seen = [link.removeprefix(hidden) for link in links]
            assert len(links) > 10
            assert {link.startswith(f"{mount}/") for link in seen} == {True}
            assert client.get(seen[-1]).status_code == 200
        asked = {"path": "/stacks", "ttl": "1m"}
        url = client.post(f"{mount}/share", json=asked).json()["url"]
        assert httpx.get(base + url.removeprefix(hidden)).status_code == 200
        put = client.put(f"{mount}/settings", json={"cpu_hz": 50, "ttl": "1m"})
        assert put.json()["settings"]["cpu_hz"]["value"] == 50


@contextmanager
def proxied(nginx: str, base: str, folder: Path) -> Iterator[str]:
    """nginx before a server, buffering and compressing all it may."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = "\n".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"""
        daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error;
        events {{ worker_connections 256; }}
        http {{
          {paths}
          access_log {folder}/access; gzip on; gzip_types *; gzip_min_length 1;
          server {{
            listen 127.0.0.1:{port};
            location / {{
              proxy_pass {base}; proxy_set_header Host $host; proxy_buffering on;
              proxy_http_version 1.1; proxy_set_header X-Forwarded-For 127.0.0.1;
            }}
          }}
        }}"""
    )
    process = subprocess.Popen(
        [nginx, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error")]
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            try:
                httpx.get(address)
                break
            except httpx.HTTPError:
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def one_byte_a_second(base: str, path: str) -> Iterator[None]:
    """A client that asks, and then reads so slowly that it is never done."""
    address = urlsplit(base)
    stop = threading.Event()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        client.connect((address.hostname, address.port))
        auth = bearer()["Authorization"]
        client.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: {auth}\r\n\r\n".encode()
        )

        def read() -> None:
            while not stop.wait(1.0) and client.recv(1):
                pass

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield
        finally:
            stop.set()
            reader.join()
