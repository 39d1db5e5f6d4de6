"""A service with one endpoint that leaves tasks behind, and one that does not."""

import asyncio

from fastapi import FastAPI

from stroboscope.integrations.fastapi import install

app = FastAPI()
install(app, service="shop")
left: list[asyncio.Task[None]] = []


async def waits_for_ever() -> None:
    await asyncio.get_running_loop().create_future()


@app.get("/leak/{item}")
async def leak(item: int) -> int:
    left.extend(asyncio.create_task(waits_for_ever()) for _ in range(3))
    return item


@app.get("/tidy")
async def tidy() -> int:
    await asyncio.gather(*(asyncio.sleep(0.01) for _ in range(3)))
    return 0
