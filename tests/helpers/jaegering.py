"""A real Jaeger, built once into a cache outside of the repository."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

#: Versions before 2 build without `replace` directives, so that `go install` takes them.
PACKAGE = "github.com/jaegertracing/jaeger/cmd/all-in-one"
VERSION = "v1.48.0"
BUILD_S = 1200


def find_jaeger() -> tuple[Path | None, str]:
    """The program, built if need be; or None and why it cannot be had."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "stroboscope/jaeger"
    program = folder / "all-in-one"
    if program.exists():
        return program, ""
    go = shutil.which("go")
    if go is None:
        return None, f"{program} is not there, nor a Go toolchain to build it"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            [go, "install", f"{PACKAGE}@{VERSION}"],
            env={**os.environ, "GOBIN": str(folder)},
            capture_output=True,
            text=True,
            timeout=BUILD_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"go install {PACKAGE}@{VERSION}: {error}"
    if done.returncode or not program.exists():
        return None, f"go install {PACKAGE}@{VERSION}: {done.stderr[-300:]}"
    return program, ""


@dataclass(frozen=True, slots=True)
class Jaeger:
    """Where it takes spans by OTLP, and where it is asked."""

    otlp_url: str
    query_url: str

    def trace(self, trace_id: str) -> dict[str, Any]:
        """One trace by its id."""
        (found,) = httpx.get(f"{self.query_url}/api/traces/{trace_id}").json()["data"]
        return dict(found)

    def slow(self, service: str, endpoint: str, least_ms: int) -> dict[str, Any]:
        """The trace that has so slow a span of an endpoint, once it has come.

        The first answer of a server, to whatever asks for it, is slow as well.
        """
        asked = {
            "service": service,
            "minDuration": f"{least_ms}ms",
            "tags": json.dumps({"stroboscope.endpoint": endpoint}),
        }
        for _ in range(150):
            answer = httpx.get(f"{self.query_url}/api/traces", params=asked)
            found = answer.json().get("data") or []
            if found:
                return dict(found[0])
            time.sleep(0.1)
        raise AssertionError(f"no slow trace of {service} has come to Jaeger")


def tags(span: dict[str, Any]) -> dict[str, Any]:
    """A span's attributes."""
    return {tag["key"]: tag["value"] for tag in span["tags"]}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def jaeger(program: Path) -> Iterator[Jaeger]:
    """It runs, with its spans in memory, on free ports of loopback alone."""
    otlp, query = _free_port(), _free_port()
    places = {
        "collector.otlp.http.host-port": otlp,
        "query.http-server.host-port": query,
        **dict.fromkeys(
            (
                "admin.http.host-port",
                "collector.grpc-server.host-port",
                "collector.http-server.host-port",
                "collector.otlp.grpc.host-port",
                "http-server.host-port",
                "processor.jaeger-binary.server-host-port",
                "processor.jaeger-compact.server-host-port",
                "processor.zipkin-compact.server-host-port",
                "query.grpc-server.host-port",
            ),
            0,
        ),
    }
    flags = [
        f"--{name}=127.0.0.1:{port or _free_port()}" for name, port in places.items()
    ]
    process = subprocess.Popen(
        [program, "--collector.otlp.enabled=true", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    made = Jaeger(f"http://127.0.0.1:{otlp}/v1/traces", f"http://127.0.0.1:{query}")
    try:
        for _ in range(200):
            try:
                httpx.get(f"{made.query_url}/api/services").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield made
    finally:
        process.kill()  # it keeps nothing, and takes half a minute to end in order
        process.wait(20)
