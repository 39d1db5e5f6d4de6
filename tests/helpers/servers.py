"""Start a real server on loopback, and end it."""

import atexit
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx

from stroboscope.auth.keys import generate_key
from stroboscope.auth.tokens import Tokens
from stroboscope.settings import Settings

ROOT = Path(__file__).parents[2]
KEY = generate_key()
FASTAPI, FLASK = "examples.fastapi_app:app", "examples.flask_app:app"
UVICORN = "uvicorn --log-level warning --port {port} "
HYPERCORN = "hypercorn --bind 127.0.0.1:{port} "
GUNICORN = "gunicorn --log-level warning --bind 127.0.0.1:{port} "


def rundir() -> Path:
    """A folder of its own for each server: two of one service would meet.

    It is gone when the tests are over.
    """
    folder = Path(tempfile.mkdtemp(prefix="strobe-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def token(*scopes: str) -> str:
    return Tokens(Settings(keys=(KEY,), service="shop")).mint(
        scopes or ("profile",), 60
    )


@contextmanager
def serving(
    command: str,
    app: str,
    output: IO[bytes] | None = None,
    *,
    is_tls: bool = False,
    **environ: str,
) -> Iterator[tuple[str, int]]:
    """The base address and the process started; its workers end with it."""
    folder = rundir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", *command.format(port=port).split(), app],
        cwd=ROOT,
        stdout=output,
        stderr=output,
        env={
            **os.environ,
            "STROBOSCOPE_KEYS": KEY,
            "PYTHONWARNINGS": "ignore",
            "PYTHONPATH": str(ROOT / "tests/helpers"),
            "STROBOSCOPE_RUNDIR": str(folder),
            **environ,
        },
    )
    base = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                if is_tls:
                    socket.create_connection(("127.0.0.1", port)).close()
                else:
                    httpx.get(base + "/debug/", timeout=5)
                break
            except (httpx.HTTPError, OSError):
                time.sleep(0.1)
        yield base, process.pid
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def under_load(
    base: str, *clients: tuple[str, ...], may_fail: bool = False
) -> Iterator[None]:
    """Each client asks for its paths in turn, until the block ends.

    A connection anew for each request: all workers get some. With `may_fail`, what
    fails is a killed worker's.
    """
    done = threading.Event()

    def load(paths: tuple[str, ...]) -> None:
        for path in itertools.cycle(paths):
            if done.is_set():
                return
            try:
                urllib.request.urlopen(base + path, timeout=20).read()
            except OSError:
                if not may_fail:
                    raise
                time.sleep(0.02)

    threads = [threading.Thread(target=load, args=(paths,)) for paths in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()
