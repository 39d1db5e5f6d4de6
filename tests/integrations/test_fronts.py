"""The same surface behind every server, proxy and layer people put before it."""

import http.client
import os
import re
import resource
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import scrapers
import trustme
from servers import FASTAPI, FLASK, GUNICORN, HYPERCORN, UVICORN, serving, token

from stroboscope.endpoints.profiles import NAMES
from stroboscope.endpoints.routes import ROUTES
from stroboscope.formats.pprof_reader import decode

DJANGO_WSGI, DJANGO_ASGI = "django_site:app", "django_site:asgi"
GTHREAD = GUNICORN + "-k gthread --threads 8"
SERVERS = {
    "uvicorn": (UVICORN, FASTAPI),
    "hypercorn": (HYPERCORN, FASTAPI),
    "gunicorn": (GTHREAD, FLASK),
    "django-gunicorn": (GTHREAD, DJANGO_WSGI),
    "django-uvicorn": (UVICORN, DJANGO_ASGI),
}
GETS = [path for route in ROUTES if "GET" in route.actions for path in route.paths]
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
            short = "seconds=0.1" if path.endswith(("profile", "wall", "trace")) else ""
            answer = client.get(f"{mount}{path}", params=short)
            expected = {404} if path == "/pprof/cmdline" else {200, 501}
            assert answer.status_code in expected, (path, answer.text[:200])
            assert answer.headers["Cache-Control"] == "no-store, private", path
            # The carrier's client undoes what a layer between may have added.
            if path.removeprefix("/pprof/") in PROFILES:
                scrapers.check(answer.content)
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
                assert raw.startswith(b"thread ")
            else:
                scrapers.check(raw)


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


@pytest.mark.slow
def test_h20_a_killed_worker_holds_no_lease() -> None:
    """SIGKILL in the middle of the one capture: the next worker takes one at once."""
    asked = "/debug/pprof/profile?forensic=1&seconds="
    with serving(GTHREAD, FLASK) as (base, _):

        def capture() -> None:
            with pytest.raises(httpx.HTTPError):
                httpx.get(base + asked + "30", headers=bearer(), timeout=40)

        pid = httpx.get(base + "/debug/selfcheck", headers=bearer()).json()["process"]
        holder = threading.Thread(target=capture)
        holder.start()
        time.sleep(1)
        busy = httpx.get(base + asked + "0.2", headers=bearer())
        os.kill(pid, signal.SIGKILL)
        killed_s = time.monotonic()
        holder.join()
        answer = None
        while answer is None:
            try:
                answer = httpx.get(base + asked + "0.2", headers=bearer(), timeout=20)
            except httpx.HTTPError:  # the new worker is not there yet
                assert time.monotonic() < killed_s + 20
                time.sleep(0.05)

    assert busy.status_code == 429
    assert int(busy.headers["Retry-After"]) >= 1
    assert answer.status_code == 200


@pytest.mark.slow
def test_h26_a_capture_ends_before_its_worker_is_killed() -> None:
    """A sync worker that gunicorn would kill after 4 s: clamped, said, and alive."""
    command = GUNICORN + "-k sync -t 4"
    with serving(command, FLASK) as (base, _):

        def process() -> int:
            checked = httpx.get(base + "/debug/selfcheck", headers=bearer(), timeout=20)
            return int(checked.json()["process"])

        before = process()
        answer = httpx.get(
            base + "/debug/pprof/profile?seconds=8", headers=bearer(), timeout=20
        )
        time.sleep(1.5)
        after = process()

    assert answer.status_code == 200
    assert answer.headers["X-Stroboscope-Clamped"] == "seconds=2.8"
    assert "killed after 4 s" in " ".join(decode(answer.content).comments)
    assert before == after


@pytest.mark.slow
def test_a_client_certificate_stands_for_a_token(tmp_path: Path) -> None:
    """Over real TLS: the listed subject gets its scopes, another's is 401."""
    authority = trustme.CA()
    server = authority.issue_cert("localhost", "127.0.0.1")
    server.private_key_pem.write_to_path(tmp_path / "key")
    server.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    authority.cert_pem.write_to_path(tmp_path / "ca")
    command = (
        f"{GTHREAD} --certfile {tmp_path}/cert --keyfile {tmp_path}/key "
        f"--ca-certs {tmp_path}/ca --cert-reqs 1"
    )

    def client(common_name: str) -> ssl.SSLContext:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        if common_name:
            issued = authority.issue_cert(
                "x@example.test",
                common_name=common_name,
                organization_name="ops",
                organization_unit_name="eyes",
            )
            issued.configure_cert(context)
        return context

    with serving(
        command, "certified_site:app", is_tls=True, SUBJECT="O=ops,OU=eyes,CN=scraper"
    ) as (base, _):
        secure = base.replace("http:", "https:")
        statuses = {}
        for name in ("scraper", "stranger", ""):
            with httpx.Client(verify=client(name), timeout=20) as asking:
                for path in ("labels", "stacks"):
                    answer = asking.get(f"{secure}/debug/{path}")
                    statuses[name, path] = answer.status_code

    assert statuses == {
        ("scraper", "labels"): 200,
        ("scraper", "stacks"): 403,
        ("stranger", "labels"): 401,
        ("stranger", "stacks"): 401,
        ("", "labels"): 401,
        ("", "stacks"): 401,
    }


@pytest.mark.slow
def test_h49_pprof_fetches_every_profile(go_pprof: list[str], tmp_path: Path) -> None:
    """Each name with the token in the address, `-seconds`, `-base`; errors in full."""
    environ = {**os.environ, "PPROF_TMPDIR": str(tmp_path)}

    def pprof(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*go_pprof, "-top", *arguments],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
        )

    with serving(UVICORN, FASTAPI) as (base, _):
        address = base.replace("//", f"//x:{token()}@") + "/debug/pprof/"
        for name in PROFILES:
            short = ("-seconds=1",) if name in ("profile", "wall") else ()
            done = pprof(*short, address + name)
            assert done.returncode == 0, done.stderr
            assert "Type: " in done.stdout, (name, done.stdout)
            # What it fetched lies in a file: take it for the base of a second fetch.
            (kept,) = re.findall(r"Saved profile in (\S+)", done.stderr) or [""]
            if kept:
                both = pprof(*short, f"-base={kept}", address + name)
                assert both.returncode == 0, both.stderr
        delta = pprof("-seconds=1", address + "heap")
        refused = pprof(base + "/debug/pprof/heap")
        unknown = pprof(address + "nothing")
        wrong = pprof(address + "heap?seconds=-1")

    assert delta.returncode == 0, delta.stderr
    assert "401 Unauthorized - unauthorized" in refused.stderr
    assert "404 Not Found - Unknown profile" in unknown.stderr
    assert 'invalid value for "seconds" - must be a positive integer' in wrong.stderr


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """What it generates from our own description is answered as described."""
    with serving(UVICORN, FASTAPI, STROBOSCOPE_PROFILE_SECONDS_CAP="0.05") as (base, _):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run"),
                *("--header", f"Authorization: {bearer()['Authorization']}"),
                *("--checks", "not_a_server_error,status_code_conformance"),
                *("--checks", "content_type_conformance,response_schema_conformance"),
                *("--checks", "unsupported_method"),
                # Its collector is not built yet: 501, which it takes for a failure.
                *("--exclude-path-regex", "trace$"),
                *("--max-examples", "15", "--seed", "1", "--rate-limit", "18/s"),
                *("--phases", "examples,coverage,fuzzing", "--no-color"),
                f"{base}/debug/openapi.json",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=115,
        )

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uvicorn"])
def test_h25_a_thousand_slow_connections_cost_nobody(name: str) -> None:
    """Half-open, sending or reading a byte a second: the application's p99 stays in
    its noise, a second capture succeeds, memory is bounded."""
    command, app = SERVERS[name]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        with serving(command, app) as (base, pid):
            calm: list[float] = []
            busy: list[float] = []
            before_kb = grown_kb = 0
            for _ in range(3):
                calm += latencies_s(base, 300)
                before_kb = before_kb or resident_kb(pid)
                with a_thousand_slow_ones(base):
                    busy += latencies_s(base, 300)
                    second = httpx.get(
                        base + "/debug/pprof/profile?seconds=0.2",
                        headers=bearer(),
                        timeout=20,
                    )
                    assert second.status_code == 200
                    grown_kb = max(grown_kb, resident_kb(pid) - before_kb)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    print(
        f"p50 {statistics.median(calm) * 1e3:.2f} {statistics.median(busy) * 1e3:.2f}"
        f" p99 {p99(calm) * 1e3:.2f} {p99(busy) * 1e3:.2f} ms, {grown_kb} kB"
    )
    # A burst of whatever else runs here moves a p99 of 900 requests by more than this.
    assert p99(busy) < 2 * p99(calm) + 0.005
    assert statistics.median(busy) < 1.5 * statistics.median(calm) + 0.001
    assert grown_kb < 60_000


def p99(values: list[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]


def latencies_s(base: str, count: int) -> list[float]:
    connection = http.client.HTTPConnection(base.removeprefix("http://"), timeout=20)
    took = []
    for _ in range(count):
        began = time.perf_counter()
        connection.request("GET", "/search")
        connection.getresponse().read()
        took.append(time.perf_counter() - began)
    connection.close()
    return took


@contextmanager
def a_thousand_slow_ones(base: str) -> Iterator[None]:
    address = urlsplit(base)
    auth = bearer()["Authorization"]
    half = "GET /debug/pprof/profile HTTP/1.1\r\nHost: localhost\r\nX-A: "
    anonymous = "GET /debug/stacks HTTP/1.1\r\nHost: localhost\r\n\r\n"
    body = (
        "PUT /debug/settings HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: 1000\r\n"
        f"Authorization: {auth}\r\n\r\n"
    )
    reads = f"GET /debug/stacks HTTP/1.1\r\nHost: localhost\r\nAuthorization: {auth}\r\n\r\n"
    texts = [half] * 600 + [anonymous] * 250 + [body] * 100 + [reads] * 50
    stop = threading.Event()
    with ExitStack() as stack:
        clients = []
        for text in texts:
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            client.connect((address.hostname, address.port))
            client.sendall(text.encode())
            clients.append((client, text))

        def trickle() -> None:
            while not stop.wait(1.0):
                for client, text in clients:
                    try:
                        if text in (half, body):
                            client.send(b"1")
                        else:
                            client.recv(1, socket.MSG_DONTWAIT)
                    except OSError:
                        pass

        trickling = threading.Thread(target=trickle)
        trickling.start()
        try:
            yield
        finally:
            stop.set()
            trickling.join()


def resident_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])
