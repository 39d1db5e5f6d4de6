"""A service with something in each profile: locks, asyncio's too, memory and CPU."""

import asyncio

from contended_site import app

kept: list[object] = []
lock = asyncio.Lock()


@app.get("/grow/{size}")
def grow(size: int) -> dict[str, int]:
    kept.append(bytearray(size * 1000))
    kept.append([str(number) for number in range(size)])
    return {"kept": len(kept), "sum": sum(range(100_000))}


@app.get("/turns")
async def turns() -> dict[str, int]:
    async with lock:
        await asyncio.sleep(0.02)
    return {}
