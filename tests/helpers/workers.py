"""Workers without a server: processes of one service that only have their own socket."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from stroboscope.auth.keys import generate_key
from stroboscope.auth.tokens import Tokens
from stroboscope.settings import Settings

ROOT = Path(__file__).parents[2]
KEY = generate_key()
#: Makes a surface, takes part, runs what it is given, and ends with its standard input.
_WORKER = """
import sys, threading, time
from stroboscope import do
from stroboscope.endpoints import Surface
from stroboscope.settings import Settings

surface = Surface(Settings(**eval(sys.argv[1])))
surface.wake()
while surface.desk.doors.socket_failure:
    time.sleep(0.01)

def burn(label, share=1.0):
    def run():
        with do(work=label):
            while True:
                ends = time.perf_counter() + 0.02 * share
                while time.perf_counter() < ends:
                    pass
                time.sleep(0.02 * (1 - share))
    threading.Thread(target=run, daemon=True).start()

exec(sys.argv[2])
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Worker:
    process: subprocess.Popen[str]
    folder: Path
    key: str

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def socket(self) -> Path:
        return self.folder / f"{self.pid}.sock"

    def ask(
        self,
        path: str,
        *scopes: str,
        method: str = "GET",
        timeout: float = 20,
        **options: object,
    ) -> httpx.Response:
        settings = Settings(keys=(self.key,), service=self.folder.name)
        text = Tokens(settings).mint(scopes or ("profile",), 60)
        transport = httpx.HTTPTransport(uds=str(self.socket))
        headers = {"Authorization": f"Bearer {text}"}
        with httpx.Client(
            transport=transport,
            base_url="http://localhost/debug",
            headers=headers,
            timeout=timeout,
        ) as client:
            return client.request(method, path, **options)  # type: ignore[arg-type]


def wait_until(holds: Callable[[], bool], seconds: float) -> float:
    """How long it took until it held. It must within so many seconds."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)
    return time.monotonic() - began


@contextmanager
def worker(
    base: Path, code: str = "", key: str = KEY, service: str = "shop", **options: object
) -> Iterator[Worker]:
    """One worker, ready. Ends with the block, by itself or by force."""
    chosen = {"keys": (key,), "service": service, "rundir": str(base), **options}
    process = subprocess.Popen(
        [sys.executable, "-c", _WORKER, repr(chosen), code],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield Worker(process, base / service, key)
    finally:
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@contextmanager
def workers(
    base: Path, *codes: str, key: str = KEY, service: str = "shop", **options: object
) -> Iterator[list[Worker]]:
    """One worker for each code."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(worker(base, code, key, service, **options))
            for code in codes
        ]
