"""Takes what the peers push, on loopback, and gives their profiles back."""

import gzip
import http.server
import threading

import zstandard

from stroboscope.formats._wire import fields
from stroboscope.formats.pprof_reader import decode

_ZSTD = b"\x28\xb5\x2f\xfd"


class Receiver:
    """An agent and a Pyroscope server in one; `profiles()` after the peer has ended."""

    def __init__(self):
        bodies = self._bodies = []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                bodies.append((self.path, self._body()))
                self._answer(b"{}")

            do_PUT = do_POST

            def do_GET(self):
                self._answer(b'{"endpoints":["/profiling/v1/input"]}')

            def _body(self):
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def _answer(self, body):
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()

    def profiles(self):
        found = []
        for path, body in self._bodies:
            if "profiling" in path:
                found += _multipart(body)
            elif "PusherService" in path:
                found += _pushed(body)
        return [decode(data) for data in found]


def _multipart(body):
    at = body.find(b'filename="profile.pprof"')
    if at < 0:
        return []
    boundary = body[: body.index(b"\r\n")]
    start = body.index(b"\r\n\r\n", at) + 4
    data = body[start : body.index(b"\r\n" + boundary, start)]
    if data.startswith(_ZSTD):
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return [data]


def _pushed(body):
    """Source: push.v1 of Pyroscope: series=1 {samples=2 {raw_profile=1}}."""
    if body[:2] == b"\x1f\x8b":
        body = gzip.decompress(body)
    return [
        raw
        for number, series in fields(body)
        if number == 1
        for inner, sample in fields(series)
        if inner == 2
        for field, raw in fields(sample)
        if field == 1
    ]
