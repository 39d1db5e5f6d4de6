"""The portable twin: the same interface, less sight, and it says so."""

import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import pytest

from stroboscope._core import Engine
from stroboscope._core._pure import NOTE, PortableDriver
from stroboscope.errors import WindowsExhausted

ROOT = Path(__file__).parents[2]


@pytest.fixture
def portable() -> Engine:
    return Engine(PortableDriver(), "for this test")


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(200))


def test_it_weighs_by_cpu_time_and_names_its_bias(portable: Engine) -> None:
    """CPU time under the right function, no label, and the note in the capture."""
    thread = threading.Thread(target=burn, args=(0.6,))
    idle = threading.Thread(target=time.sleep, args=(0.6,))
    window = portable.open_window(100)
    thread.start()
    idle.start()
    thread.join()
    idle.join()

    capture = window.close()

    ns = {"burn": 0, "other": 0}
    for stack, serial, _, spent in capture.rows:
        names = {capture.frames[at][1] for at in capture.stacks[stack]}
        ns["burn" if "burn" in names else "other"] += spent
        assert serial == 0
    assert ns["burn"] == pytest.approx(0.6e9, rel=0.3)
    assert ns["other"] < 0.1e9
    assert NOTE in capture.notes
    assert portable.info().kind == "portable"


def test_windows_share_it_and_are_limited(portable: Engine) -> None:
    """The same limit as the native engine, and nothing runs after the last."""
    windows = [portable.open_window(seconds=7) for _ in range(4)]

    with pytest.raises(WindowsExhausted):
        portable.open_window()
    for window in windows:
        window.close()

    assert portable.info().counters["active"] == 0
    running = {frame.f_code.co_filename for frame in sys._current_frames().values()}
    assert not any(name.endswith("_pure.py") for name in running)


def test_threads_of_ours_are_not_sampled(portable: Engine) -> None:
    """A thread that works for the surface does not see itself."""
    done = threading.Event()

    def work() -> None:
        burn(0.3)
        done.set()

    window = portable.open_window(100)
    portable.start_thread(work)
    done.wait(10)
    capture = window.close()

    assert "burn" not in {frame[1] for frame in capture.frames}


#: A window on a thread of ours, as a request to the surface opens it.
UNDER_GEVENT = """
from gevent import monkey
monkey.patch_all()
import gevent, gevent.hub
from stroboscope._core import Engine
from stroboscope._core._pure import PortableDriver

gevent.get_hub()
made, ended = [], []
begin = gevent.hub.Hub.__init__
gevent.hub.Hub.__init__ = lambda hub, *a, **k: (made.append(hub), begin(hub, *a, **k))[1]
engine = Engine(PortableDriver(), "for this test")

def looks():
    window = engine.open_window(100)
    assert window.wait(0.1)
    ended.append(window.close().duration_ns > 0 and engine.own_cpu_ns() > 0)

engine.start_thread(looks)
for _ in range(500):
    if ended:
        break
    gevent.sleep(0.01)
print(ended, made)
"""


def test_it_runs_beside_greenlets_without_a_hub() -> None:
    """The sampler is a thread of the system's, which waits as one."""
    command = [sys.executable, "-W", "ignore", "-c", UNDER_GEVENT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert done.stdout == "[True] []\n", done.stderr[-2000:]


def copied_source(folder: Path) -> Path:
    """The project without what was built in it."""
    source = folder / "source"
    built = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "stroboscope", source / "stroboscope", ignore=built)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


@pytest.mark.slow
def test_a_build_without_c_installs_and_profiles(tmp_path: Path) -> None:
    """STROBOSCOPE_PURE=1 gives a wheel with no extension; its engine says why."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    source = copied_source(tmp_path)
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        env={**os.environ, "STROBOSCOPE_PURE": "1"},
        check=True,
        capture_output=True,
    )
    wheel = next(tmp_path.glob("*.whl"))
    code = """
import time
from stroboscope._core import engine
from stroboscope.profiles.cpu import collect_cpu
import threading
threading.Thread(target=lambda: [sum(range(9999)) for _ in range(5000)]).start()
profile = collect_cpu(0.5, lambda window: None)
print(engine.info().kind, profile.total() > 0, engine.info().reason)

import asyncio, stroboscope
from stroboscope.profiles.wall import collect_wall
async def waits(): await asyncio.sleep(10)
async def main():
    with stroboscope.do(who="me"):
        task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    wall = await asyncio.to_thread(
        collect_wall, 0.5, lambda window: None, loops=lambda: [loop]
    )
    task.cancel()
    print(sum(s.values[0] for s in wall.samples
              if dict(s.labels) == {"who": "me", "state": "suspended"}) / 1e9)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(wheel)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    names = zipfile.ZipFile(wheel).namelist()
    assert "stroboscope/py.typed" in names
    assert not [name for name in names if name.endswith((".so", ".c", ".h"))]
    assert wheel.name.endswith("-none-any.whl")
    assert done.stdout.startswith("portable True no C engine")
    assert float(done.stdout.split()[-1]) == pytest.approx(0.5, rel=0.2)


@pytest.mark.slow
def test_the_source_distribution_can_be_built_from(tmp_path: Path) -> None:
    """It carries the C sources and headers, and no built file."""
    code = "import setuptools.build_meta as b, sys; b.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
        cwd=copied_source(tmp_path),
        check=True,
        capture_output=True,
    )

    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    sources = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "stroboscope/_core/src").glob("*.[ch]")
    }
    assert sources <= names
    assert "stroboscope/py.typed" in names
    assert not [name for name in names if name.endswith(".so")]
