"""HTTP as it is spoken on the wire: old, odd, and in its second version."""

import re
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import scrapers
import trustme
from fronts import DJANGO_WSGI, GTHREAD, bearer
from h2.connection import H2Connection
from servers import FASTAPI, FLASK, HYPERCORN, UVICORN, serving

SERVERS = {
    "uvicorn": (UVICORN, FASTAPI),
    "hypercorn": (HYPERCORN, FASTAPI),
    "gunicorn": (GTHREAD, FLASK),
    "django": (GTHREAD, DJANGO_WSGI),
}
PATH = "/debug/metrics"


def talk(port: int, text: str) -> list[str]:
    """The status of every answer, until the server closes or says no more."""
    return re.findall(r"HTTP/1\.[01] (\d{3})", said(port, text))


def said(port: int, text: str) -> str:
    """All that a server answers."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
        one.sendall(text.encode("latin-1"))
        one.settimeout(2)
        try:
            while chunk := one.recv(65536):
                got += chunk
        except (TimeoutError, ConnectionResetError):
            pass
    return got.decode("latin-1")


@pytest.fixture(scope="module", params=SERVERS)
def port(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """Of one server of each kind, for all that is said to it; in none of it fails."""
    command, app = SERVERS[request.param]
    log = tmp_path_factory.mktemp("http") / "log"
    with log.open("wb") as output, serving(command, app, output) as (base, _):
        yield int(base.rpartition(":")[2])
    written = log.read_text(errors="replace")
    assert "Traceback" not in written, written
    assert "internal error" not in written, written


@pytest.mark.slow
def test_h48_plain_http_is_served(port: int) -> None:
    """HTTP/1.0, the absolute form, pipelining; HEAD, OPTIONS and TRACE are 405."""
    last = f"Host: localhost\r\nAuthorization: {bearer('metrics')['Authorization']}\r\n"
    close = f"{last}Connection: close\r\n\r\n"
    statuses = {
        "old": talk(port, f"GET {PATH} HTTP/1.0\r\n{last}\r\n"),
        "hostless": talk(port, f"GET {PATH} HTTP/1.0\r\n{last[17:]}\r\n"),
        "absolute": talk(
            port, f"GET http://localhost:{port}{PATH} HTTP/1.1\r\n{close}"
        ),
        "piped": talk(
            port,
            f"GET {PATH} HTTP/1.1\r\n{last}\r\nGET {PATH} HTTP/1.1\r\n{close}",
        ),
        **{
            method: talk(port, f"{method} {PATH} HTTP/1.1\r\n{close}")
            for method in ("HEAD", "OPTIONS", "TRACE")
        },
    }

    assert statuses == {
        "old": ["200"],
        "hostless": ["400"],
        "absolute": ["200"],
        "piped": ["200", "200"],
        "HEAD": ["405"],
        "OPTIONS": ["405"],
        "TRACE": ["405"],
    }


@pytest.mark.slow
def test_h15_headers_cannot_be_smuggled(port: int) -> None:
    """Doubled, folded, joined and underscored: refused by the server or by us."""
    good = f"Authorization: {bearer('metrics')['Authorization']}\r\n"

    def ask(target: str, *lines: str) -> str:
        sent = "".join(f"{line}\r\n" for line in lines)
        first = f"GET {target} HTTP/1.1\r\nConnection: close\r\n"
        (status,) = talk(port, f"{first}{sent}\r\n") or ["closed"]
        return status

    host = "Host: localhost"
    plain = ask(PATH, host, good.strip())
    refused = [
        ask(PATH, host, "Host: evil.test", good.strip()),
        ask(PATH, "Host: localhost, evil.test", good.strip()),
        ask(PATH, "Host: localhost@evil.test", good.strip()),
        ask(PATH, host, "Authorization: Bearer bad", good.strip()),
        ask(PATH, host, good.strip(), "Authorization: Bearer bad"),
        ask(PATH, host, "X-Authorization: x", good.replace("on:", "on :").strip()),
        ask(PATH, host, "Sec_Fetch_Site: none", "Sec-Fetch-Site: cross-site", good),
        ask(PATH, host, "Origin: http://localhost", "Origin: http://evil", good),
        ask(PATH, host, "X-Forwarded-Host: localhost", "Origin: null", good),
        ask(PATH, host, "X-Original-URL: /", "X-Rewrite-URL: /search"),
        ask(PATH, host, "SSL-Client-Verify: SUCCESS", "SSL_CLIENT_S_DN: CN=a"),
        ask(PATH, host, "Remote_User: ops", "X-Remote-User: ops"),
    ]
    # gunicorn lets a proxy on loopback move the application: the surface moves
    # along, and asks all the same.
    moved = ask("/x/debug/metrics", host, "Script_Name: /x")
    elsewhere = [
        ask(target, host)
        for target in ("/x/../debug/metrics", "//debug/metrics", "/DEBUG/metrics")
    ]

    assert plain == "200"
    assert set(refused) <= {"400", "401", "403", "429", "closed"}
    assert set(elsewhere) == {"404"}
    assert moved in ("401", "404", "429")


PUT = "PUT /debug/settings HTTP/1.1\r\nContent-Type: application/json\r\n"
CHUNKED = "Transfer-Encoding: chunked\r\n"
UPGRADE = (
    "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nConnection: Upgrade, close\r\n"
)
#: What is sent around `Host` and the token, and what may come of it with a token; a
#: server's own words are its own.
ODD = {
    "websocket": ("GET /debug/selfcheck HTTP/1.1\r\n", UPGRADE, "", {200, 403}),
    "connect": ("CONNECT localhost:80 HTTP/1.1\r\n", "", "", {400, 404}),
    "star": ("OPTIONS * HTTP/1.1\r\n", "", "", {404}),
    "long method": (f"{'A' * 3000} {PATH} HTTP/1.1\r\n", "", "", {400, 405}),
    "odd method": (f"G\xcbT {PATH} HTTP/1.1\r\n", "", "", {400}),
    "nul": ("GET /debug/%00 HTTP/1.1\r\n", "", "", {404}),
    "no text": ("GET /debug/%ff?x=%fe HTTP/1.1\r\n", "", "", {404}),
    "encoded": ("GET /debug%2fmetrics HTTP/1.1\r\n", "", "", {200}),
    "backslash": ("GET /debug\\metrics HTTP/1.1\r\n", "", "", {404}),
    "long path": (f"GET /debug/{'a' * 3000} HTTP/1.1\r\n", "", "", {404}),
    "long link": (f"GET /debug/share/{'a' * 3000} HTTP/1.1\r\n", "", "", {401, 429}),
    "odd query": (f"GET {PATH}?a;b=%zz&&=&=1 HTTP/1.1\r\n", "", "", {200}),
    "long query": (f"GET {PATH}?{'a' * 3000} HTTP/1.1\r\n", "", "", {200}),
    "ten gigabytes": (PUT, "Content-Length: 10000000000\r\n", "{}", {413}),
    "endless": (PUT, CHUNKED, f"10000\r\n{'x' * 65536}\r\n" * 3, {400, 413}),
    "no chunks": (PUT, CHUNKED, "zz\r\n{}\r\n0\r\n\r\n", {400}),
    "trailers": (PUT, CHUNKED, "2\r\n{}\r\n0\r\nHost: evil.test\r\n\r\n", {200, 400}),
    "body of a get": (f"GET {PATH} HTTP/1.1\r\n", "Content-Length: 2\r\n", "{}", {200}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_h24_h48_odd_requests_are_answered_or_refused(port: int, name: str) -> None:
    """By the server or by us; nothing for who has no token, and nothing ends it."""
    line, headers, body, expected = ODD[name]
    close = "" if "Upgrade" in headers else "Connection: close\r\n"
    auth = f"Authorization: {bearer()['Authorization']}\r\n"
    rest = f"Host: localhost\r\n{close}{headers}"
    (allowed,) = talk(port, f"{line}{rest}{auth}\r\n{body}")
    (strange,) = talk(port, f"{line}{rest}\r\n{body}")
    alive = talk(port, f"GET {PATH} HTTP/1.0\r\nHost: localhost\r\n{auth}\r\n")

    assert int(allowed) in expected
    assert int(strange) in (400, 401, 403, 404, 429)
    assert alive == ["200"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["Accept", "If-Match", "Origin", "User-Agent", "X-Request-Id", "Host"]
)
def test_h16_h35_no_line_of_an_answer_is_the_askers(port: int, name: str) -> None:
    """Bare, doubled and folded ends of line and NUL in a header that is read: one
    answer comes, if any, and nothing of it is what was sent."""
    good = f"Authorization: {bearer('metrics')['Authorization']}\r\n"
    host = "" if name == "Host" else "Host: localhost\r\n"
    value = {"Host": "localhost", "Origin": "http://localhost"}.get(name, "text/plain")
    for end in ("\r", "\n", "\0", "\r\n ", "\r\n\t", "\x0b", "\x85", "\u010a"):
        sent = f"{name}: {value}{end}Set-Cookie: stolen=1".encode()
        text = (
            f"GET /debug/selfcheck HTTP/1.1\r\n{host}{good}"
            f"{sent.decode('latin-1')}\r\nConnection: close\r\n\r\n"
        )
        answer = said(port, text)
        head = answer.partition("\r\n\r\n")[0]
        assert len(re.findall(r"HTTP/1\.[01] \d{3}", answer)) <= 1, end
        assert "set-cookie" not in head.lower(), end
        assert "stolen" not in answer, end
        assert not set("\r\n\0") & set(head.replace("\r\n", "")), end


@pytest.mark.slow
def test_h48_http_2_is_served(tmp_path: Path) -> None:
    """By hypercorn over TLS: the authority stands for Host, profiles come whole."""
    authority = trustme.CA()
    server = authority.issue_cert("localhost", "127.0.0.1", "evil.test")
    server.private_key_pem.write_to_path(tmp_path / "key")
    server.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    command = f"{HYPERCORN} --certfile {tmp_path}/cert --keyfile {tmp_path}/key "
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with (
        serving(command, FASTAPI, is_tls=True) as (base, _),
        httpx.Client(http2=True, verify=context, timeout=20) as client,
    ):
        address = base.replace("http:", "https:") + "/debug/"
        profile = client.get(address + "pprof/profile?seconds=0.2", headers=bearer())
        refused = client.get(address)
        foreign = client.get(address, headers=bearer() | {"Host": "evil.test"})
        put = client.put(
            address + "settings", headers=bearer(), json={"cpu_hz": 50, "ttl": "1m"}
        )
        give_up_at_once(int(base.rpartition(":")[2]), context, 30)
        began_s = time.monotonic()
        path = "pprof/profile?seconds=0.2"
        after = client.get(address + path, headers=bearer())
        while after.status_code == 429 and time.monotonic() < began_s + 5:
            time.sleep(0.1)
            after = client.get(address + path, headers=bearer())

    assert after.status_code == 200
    assert profile.http_version == "HTTP/2"
    scrapers.check(profile.content)
    assert (refused.status_code, refused.text) == (401, "unauthorized\n")
    assert foreign.status_code == 400
    assert put.json()["settings"]["cpu_hz"]["value"] == 50


def give_up_at_once(port: int, context: ssl.SSLContext, times: int) -> None:
    """Ask for profiles of 30 s over one connection, and reset each stream."""
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection(("127.0.0.1", port))
    with context.wrap_socket(plain, server_hostname="localhost") as client:
        connection = H2Connection()
        connection.initiate_connection()
        for _ in range(times):
            stream = connection.get_next_available_stream_id()
            asked = [
                (":method", "GET"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "/debug/pprof/profile?seconds=30"),
                ("authorization", bearer()["Authorization"]),
            ]
            connection.send_headers(stream, asked, end_stream=True)
            client.sendall(connection.data_to_send())
            time.sleep(0.01)
            connection.reset_stream(stream)
            client.sendall(connection.data_to_send())
