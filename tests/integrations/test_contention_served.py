"""Contention of a served application, by endpoint, against its own clocks."""

import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import scrapers
from contending import once_in_three
from servers import GUNICORN, UVICORN, serving, token

pytestmark = [pytest.mark.native, pytest.mark.slow]
SERVERS = {
    "uvicorn": (UVICORN, "contended_site:app", "/checkout/{item}"),
    "gunicorn gthread": (
        GUNICORN + "-k gthread --threads 8",
        "contended_site:wsgi",
        "/checkout/<int:item>",
    ),
}
PATHS = ["/checkout/1", "/search", "/search"] * 10


def bearer(*scopes: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(*scopes)}"}


def delay_ms(pprof: list[str], file: Path, base: Path, endpoint: str) -> float:
    shown = subprocess.run(
        [
            *(*pprof, "-top", "-sample_index=delay", "-unit=ms"),
            *(f"-tagfocus=endpoint=^\\Q{endpoint}\\E$", f"-base={base}", str(file)),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (line,) = [one for one in shown.splitlines() if "Showing nodes" in one]
    return float(line.split("accounting for ")[1].split("ms")[0])


@pytest.mark.parametrize("name", SERVERS)
@once_in_three
def test_a_lock_of_import_time_is_seen_by_endpoint(
    name: str, go_pprof: list[str], tmp_path: Path
) -> None:
    """Eight clients: each endpoint's waits within 5 % of what it measured itself."""
    command, app, checkout = SERVERS[name]
    files = {n: tmp_path / n for n in ("block", "block0", "mutex", "mutex0")}
    with serving(command, app) as (address, _):
        switched = httpx.put(
            address + "/debug/settings",
            headers=bearer("admin"),
            json={"mutex_fraction": 1, "block_rate_ns": 1},
        )
        assert switched.status_code == 200

        def read(name: str, file: str) -> None:
            url = f"{address}/debug/pprof/{name}"
            body = httpx.get(url, headers=bearer(), timeout=20).content
            scrapers.check(body)
            files[file].write_bytes(body)

        read("block", "block0")
        read("mutex", "mutex0")
        with ThreadPoolExecutor(8) as clients:
            answers = list(
                clients.map(lambda p: httpx.get(address + p, timeout=30).json(), PATHS)
            )
        read("block", "block")
        read("mutex", "mutex")

    waited: Counter[str] = Counter()
    for path, answer in zip(PATHS, answers, strict=True):
        waited[path] += answer["waited"] * 1e3
    for path, endpoint in (("/checkout/1", checkout), ("/search", "/search")):
        blocked = delay_ms(go_pprof, files["block"], files["block0"], endpoint)
        assert blocked == pytest.approx(waited[path], rel=0.05)
    by_holder = {
        endpoint: delay_ms(go_pprof, files["mutex"], files["mutex0"], endpoint)
        for endpoint in (checkout, "/search")
    }
    assert sum(by_holder.values()) == pytest.approx(waited.total(), rel=0.05)
    # Half as often, five times as long.
    assert by_holder[checkout] > 1.5 * by_holder["/search"]
