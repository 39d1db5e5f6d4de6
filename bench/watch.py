"""What a worker costs while it does nothing: CPU share and memory, by what is on.

Servers side by side, without keys (nothing of ours runs), without the watch, and whole;
uvicorn on asyncio and uvloop and gunicorn's gthread. CPU from the kernel's own account.
"""

import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/helpers"))
TICKS = os.sysconf("SC_CLK_TCK")
KINDS = {
    "off": {"STROBOSCOPE_KEYS": ""},
    "no watch": {"STROBOSCOPE_STALL_THRESHOLD_MS": "0"},
    "whole": {},
}


def cpu_s(process):
    """Nanoseconds on CPU of all threads, from schedstat where the kernel has it."""
    total = 0
    for task in Path(f"/proc/{process}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def rss_kib(process):
    text = Path(f"/proc/{process}/smaps_rollup").read_text()
    return int(next(li for li in text.splitlines() if li.startswith("Rss")).split()[1])


def worker_of(process):
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return int(children[0]) if children else process


def main(seconds=20.0):
    from servers import GUNICORN, UVICORN, serving

    servers = {
        "asyncio": (UVICORN + "--loop asyncio", "stalling_site:app"),
        "uvloop": (UVICORN + "--loop uvloop", "stalling_site:app"),
        "gthread": (GUNICORN + "-k gthread --threads 4", "stalling_site:threads"),
    }
    table = {}
    for name, (command, app) in servers.items():
        for kind, environ in KINDS.items():
            with serving(command, app, **environ) as (base, process):
                import httpx

                for _ in range(20):
                    httpx.get(base + "/ready", timeout=20)
                worker = worker_of(process)
                time.sleep(3)
                before, began = cpu_s(worker), time.monotonic()
                time.sleep(seconds)
                share = (cpu_s(worker) - before) / (time.monotonic() - began)
                table[f"{name}, {kind}"] = {
                    "cpu_percent": round(100 * share, 4),
                    "rss_kib": rss_kib(worker),
                }
    return table


if __name__ == "__main__":
    print(json.dumps(main(*map(float, sys.argv[1:])), indent=1))
