"""A real redis-server on loopback, with a folder and a port of its own."""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fetching

CACHE = Path(__file__).parents[2] / ".cache/redis"
PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1")


def binary() -> tuple[str, dict[str, str]]:
    """The server and its environment; unpacked from its Debian packages where missing."""
    if found := shutil.which("redis-server"):
        return found, {}
    with fetching.into(CACHE):
        path = CACHE / "usr/bin/redis-server"
        if not path.exists():
            fetch = ["apt-get", "download", *PACKAGES]
            done = subprocess.run(fetch, cwd=CACHE, timeout=300, capture_output=True)
            if done.returncode:  # package lists that were never fetched
                subprocess.run(["apt-get", "update"], check=True, timeout=300)
                subprocess.run(fetch, cwd=CACHE, check=True, timeout=300)
            for package in CACHE.glob("*.deb"):
                subprocess.run(
                    ["dpkg-deb", "-x", package, CACHE], check=True, timeout=60
                )
    (libraries,) = (CACHE / "usr/lib").glob("*-linux-gnu*")
    return str(path), {"LD_LIBRARY_PATH": str(libraries)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """`options` go to its command line, such as `requirepass=...`."""

    def __init__(self, folder: Path, **options: str) -> None:
        self.folder, self.port = folder, free_port()
        self.options = options
        self.password = options.get("requirepass", "")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://{self._credentials}127.0.0.1:{self.port}/0"

    @property
    def _credentials(self) -> str:
        return f":{self.password}@" if self.password else ""

    def start(self) -> None:
        path, environ = binary()
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            "enable-debug-command": "yes",
            "logfile": str(self.folder / "log"),
            **self.options,
        }
        command = [path]
        for name, value in options.items():
            command += [f"--{name}", value]
        self.process = subprocess.Popen(command, env={**os.environ, **environ})
        ends_s = time.monotonic() + 10
        while time.monotonic() < ends_s:
            try:
                self.run("PING")
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError((self.folder / "log").read_text())

    def kill(self, *, loses_data: bool = False) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        if loses_data:
            shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)

    def run(self, *command: str) -> Any:
        """What Redis answers to a command; by way of its own library."""
        import redis

        with redis.Redis(
            port=self.port,
            password=self.password or None,
            decode_responses=True,
            socket_timeout=5,
        ) as client:
            try:
                return client.execute_command(*command)
            except redis.exceptions.ConnectionError as error:
                raise ConnectionError(str(error)) from error

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def commands(self) -> int:
        """How many commands it has carried out."""
        return int(self.run("INFO", "stats")["total_commands_processed"])


@contextmanager
def redis_server(folder: Path, **options: str) -> Iterator[RedisServer]:
    """One that runs; ended with the block, whatever was done to it."""
    folder.mkdir(parents=True, exist_ok=True)
    server = RedisServer(folder, **options)
    try:
        server.start()
        yield server
    finally:
        if server.process is not None:
            server.go_on()
        server.kill()


@contextmanager
def dribbling(port: int, wait_s: float) -> Iterator[int]:
    """A port before another: each byte of an answer comes so long after the last."""
    listening = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def pump(source: socket.socket, sink: socket.socket, is_slow: bool) -> None:
        try:
            while chunk := source.recv(65536):
                if not is_slow:
                    sink.sendall(chunk)
                    continue
                for byte in chunk:
                    if ended.wait(wait_s):
                        return
                    sink.sendall(bytes([byte]))
        except OSError:
            pass
        finally:
            source.close()
            sink.close()

    def serve() -> None:
        while True:
            try:
                near, _ = listening.accept()
                far = socket.create_connection(("127.0.0.1", port))
            except OSError:
                return
            for one in ((near, far, False), (far, near, True)):
                threading.Thread(target=pump, args=one, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listening.getsockname()[1]
    finally:
        ended.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
