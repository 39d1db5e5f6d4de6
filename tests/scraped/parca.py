"""The real Parca reads a real service of two workers: `make parca`.

Builds Parca where it is not in `.cache/parca` (a quarter of an hour on one core), scrapes
every profile for a minute, and asks Parca's own API: all targets healthy, and in each
kind of profile the function that is known to fill it.
"""

import datetime
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from fronts import bearer
from servers import KEY, ROOT, UVICORN, serving

from stroboscope.auth.tokens import Tokens
from stroboscope.settings import Settings

VERSION, API = "v0.28.0", "http://127.0.0.1:7171/api"
SCRAPED_S = 60
#: Parca's name: (path, whether it has `seconds`, who fills it).
PROFILES = {
    "process_cpu": ("pprof/profile", True, "grow"),
    "fgprof": ("fgprof", True, "reserve"),
    "memory": ("pprof/allocs", False, "grow"),
    "heap": ("pprof/heap", False, "grow"),
    "mutex": ("pprof/mutex", False, "reserve"),
    "block": ("pprof/block", False, "reserve"),
    "goroutine": ("pprof/goroutine", False, "reserve"),
    "threadcreate": (
        "pprof/threadcreate",
        False,
        "AsyncIOBackend.run_sync_in_worker_thread",
    ),
}


def built() -> Path:
    """The binary, of the Go module proxy's sources."""
    folder = ROOT / ".cache/parca"
    binary = folder / "parca"
    if not binary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        package = "github.com/parca-dev/parca"
        (folder / "go.mod").write_text(f"module built\nrequire {package} {VERSION}\n")
        (folder / "built.go").write_text(
            f'//go:build tools\n\npackage built\n\nimport _ "{package}/cmd/parca"\n'
        )
        subprocess.run(
            ["go", "build", "-mod=mod", "-o", binary, f"{package}/cmd/parca"],
            cwd=folder,
            env={**os.environ, "GONOSUMDB": "*"},
            check=True,
        )
    return binary


def configuration(folder: Path, base: str) -> str:
    profiles = "\n".join(
        f"      {name}: {{enabled: true, delta: {str(is_delta).lower()},"
        f" path: /debug/{path}}}"
        for name, (path, is_delta, _) in PROFILES.items()
    )
    return f"""
object_storage:
  bucket: {{type: FILESYSTEM, config: {{directory: "{folder}/data"}}}}
scrape_configs:
- job_name: shop
  scrape_interval: 10s
  authorization: {{credentials_file: {folder}/token}}
  static_configs: [{{targets: ["{base.removeprefix("http://")}"]}}]
  profiling_config:
    pprof_config:
{profiles}
"""


@contextmanager
def scraping(base: str, folder: Path) -> Iterator[None]:
    token = Tokens(Settings(keys=(KEY,), service="shop")).mint(("profile",), 600)
    (folder / "token").write_text(token)
    (folder / "parca.yaml").write_text(configuration(folder, base))
    address = API.removeprefix("http://").partition("/")[0]
    with (folder / "log").open("wb") as log:
        parca = subprocess.Popen(
            [
                built(),
                f"--config-path={folder}/parca.yaml",
                f"--http-address={address}",
            ],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            parca.terminate()
            parca.wait()


@contextmanager
def under_load(base: str) -> Iterator[None]:
    done = threading.Event()

    def load(path: str) -> None:
        with httpx.Client(base_url=base, timeout=20) as client:
            while not done.wait(0.02):
                client.get(path)

    paths = ("/checkout/1", "/search", "/search", "/grow/50", "/turns", "/turns")
    loads = [threading.Thread(target=load, args=(path,)) for path in paths]
    for one in loads:
        one.start()
    try:
        yield
    finally:
        done.set()
        for one in loads:
            one.join()


def ask(path: str, **parameters: str) -> Any:
    answer = httpx.get(API + path, params=parameters, timeout=60)
    answer.raise_for_status()
    return answer.json()


def functions(query: str) -> dict[str, int]:
    """By name what they have, themselves and those they call, in all that was read."""
    now = datetime.datetime.now(datetime.UTC)
    told = ask(
        "/profiles/query",
        **{
            "mode": "MODE_MERGE",
            "merge.query": query,
            "merge.start": f"{now - datetime.timedelta(minutes=10):%Y-%m-%dT%H:%M:%SZ}",
            "merge.end": f"{now:%Y-%m-%dT%H:%M:%SZ}",
            "reportType": "REPORT_TYPE_TOP",
        },
    )
    return {
        one["meta"]["function"]["name"]: int(one["cumulative"])
        for one in told["top"]["list"]
        if one["meta"].get("function")
    }


def judged() -> int:
    """What Parca says of its targets, and of each kind of profile; how much is wrong."""
    wrong = 0
    targets = ask("/targets")["targets"]["shop"]["targets"]
    for one in targets:
        is_good = one["health"] == "HEALTH_GOOD" and not one["lastError"]
        wrong += not is_good
        print(one["url"].partition("/debug/")[2], one["health"], one["lastError"])
    wrong += len(targets) != len(PROFILES)
    types = ask("/profiles/types")["types"]
    wrong += {one["name"] for one in types} != set(PROFILES)
    for one in types:
        parts = (one["name"], one["sampleType"], one["sampleUnit"])
        query = ":".join((*parts, one["periodType"], one["periodUnit"]))
        query += ":delta" if one["delta"] else ""
        found = functions(query).get(PROFILES[one["name"]][2], 0)
        wrong += not found
        print(f"{query}: {PROFILES[one['name']][2]} {found}")
    return wrong


def main() -> int:
    built()
    knobs = {"mutex_fraction": 1, "block_rate_ns": 1, "heap_rate_bytes": 16384}
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(UVICORN + "--workers 2", "filled_site:app") as (base, _),
    ):
        put = {**knobs, "ttl": "30m"}
        httpx.put(
            base + "/debug/settings", headers=bearer(), json=put
        ).raise_for_status()
        with scraping(base, Path(folder)), under_load(base):
            time.sleep(SCRAPED_S)
            return judged()


if __name__ == "__main__":
    sys.exit(min(main(), 1))
