"""Processes as containers have them: each with process ids and a host name of its own,
and of the others' files only the run directory, at another place. The network is shared,
as in a pod."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
from servers import KEY, ROOT, token

#: Where a container has the run directory.
INSIDE = "/mnt"
#: Of the shell that prepares one: its name, the run directory, its user, the interpreter
#: and the folder that keeps that user from it, if one does; and what to run.
_INIT = """
set -e
hostname "$1"
mount --bind "$2" /mnt
mount -t tmpfs tmpfs "$2"
if [ -n "$5" ]; then
  mount -t tmpfs tmpfs /media
  mkdir /media/python
  mount --bind "$4" /media/python
  mount -t tmpfs -o mode=755 tmpfs "$5"
  mkdir -p "$4"
  mount --bind /media/python "$4"
fi
user=$3
shift 5
exec setpriv --reuid="$user" --regid="$user" --clear-groups --pdeathsig KILL "$@"
"""
_UNSHARE = [
    "unshare",
    "--pid",
    "--fork",
    "--mount-proc",
    "--uts",
    "--ipc",
    "--kill-child",
]
ALL = ("metrics", "profile", "trace", "admin")


def inside(name: str, rundir: Path, user: int, *command: str) -> list[str]:
    """A command line that runs another in a container."""
    base = Path(sys.base_prefix)
    shut = [one for one in base.parents if not one.stat().st_mode & 0o001]
    prepared = (name, str(rundir), str(user), str(base), str(shut[-1]) if shut else "")
    return [*_UNSHARE, "--", "sh", "-c", _INIT, "sh", *prepared, *command]


def why_not(rundir: Path, user: int) -> str:
    """Why there can be no containers here; empty where there can."""
    if os.geteuid() != 0:
        return "namespaces of processes and mounts take root"
    code = "import stroboscope, os; print(os.getpid(), os.geteuid())"
    try:
        done = subprocess.run(
            inside("probe", rundir, user, sys.executable, "-c", code),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.stdout.split()[1:] == [str(user)] else done.stderr.strip()


@dataclass(frozen=True, slots=True)
class Container:
    """A client of the surface and the application in one."""

    process: subprocess.Popen[bytes]
    port: int

    def ask(
        self, path: str, method: str = "GET", at: str = "", **options: object
    ) -> httpx.Response:
        """An answer of the surface, to a token that opens all."""
        return httpx.request(
            method,
            f"http://127.0.0.1:{self.port}{at}/debug{path}",
            headers={"Authorization": f"Bearer {token(*ALL)}"},
            timeout=30,
            **options,  # type: ignore[arg-type]
        )

    def get(self, path: str) -> httpx.Response:
        """An answer of the application."""
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=30)

    def pids(self) -> list[int]:
        """The workers, as it lists them."""
        return [int(one["pid"]) for one in self.ask("/workers").json()["workers"]]

    def send(self, number: signal.Signals, pid: int) -> None:
        """A signal for a process, by its number inside."""
        enter = ["nsenter", f"--target={self.first()}", "--pid", "--mount"]
        command = ["kill", f"-{number.value}", str(pid)]
        subprocess.run([*enter, *command], check=True, timeout=10)

    def stop(self) -> int:
        """End it as `docker stop` does; the exit code of its process 1."""
        os.kill(self.first(), signal.SIGTERM)
        return self.process.wait(10)

    def first(self) -> int:
        """Its process 1, by its number outside."""
        tasks = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(tasks.read_text().split()[0])


@contextmanager
def container(
    name: str,
    rundir: Path,
    command: str,
    output: IO[bytes] | None = None,
    user: int = 0,
    **environ: str,
) -> Iterator[Container]:
    """One that runs a module, which has `{port}` in its arguments and answers there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    module = [sys.executable, "-m", *command.format(port=port).split()]
    process = subprocess.Popen(
        inside(name, rundir, user, *module),
        cwd=ROOT,
        stdout=output,
        stderr=output,
        env={
            **os.environ,
            "STROBOSCOPE_KEYS": KEY,
            "STROBOSCOPE_SERVICE": "shop",
            "STROBOSCOPE_RUNDIR": INSIDE,
            "PYTHONWARNINGS": "ignore",
            "PYTHONPATH": str(ROOT / "tests/helpers"),
            **environ,
        },
    )
    try:
        for _ in range(300):
            try:
                httpx.get(f"http://127.0.0.1:{port}/debug/", timeout=5)
                break
            except httpx.HTTPError:
                time.sleep(0.05)
        yield Container(process, port)
    finally:
        process.kill()  # with it its process 1, and so all of them
        process.wait(20)
