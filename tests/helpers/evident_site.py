"""A site with a fast, a slow, a broken and a blocking endpoint, over ASGI and WSGI."""

import asyncio
import time

from fastapi import FastAPI
from flask import Flask

import stroboscope as strobe
from stroboscope.integrations import fastapi, flask

app = FastAPI()
fastapi.install(app, service="shop")


@app.get("/fast/{item}")
async def fast(item: int) -> dict[str, int]:
    with strobe.region("cache"):
        return {"item": item}


@app.get("/slow/{item}")
async def slow(item: int) -> dict[str, int]:
    with strobe.region("db.fetch"):
        await asyncio.sleep(0.4)
    with strobe.region("render"):
        return {"item": item}


@app.get("/wait/{ms}")
async def wait(ms: int) -> int:
    with strobe.region("wait"):
        await asyncio.sleep(ms / 1000)
    return ms


@app.get("/broken")
async def broken() -> None:
    with strobe.region("db.broken"):
        raise ValueError("no such table")


@app.get("/blocking")
async def blocking() -> None:
    with strobe.region("mistake"):
        time.sleep(0.6)  # noqa: ASYNC251 - the mistake that is to be found


@app.get("/hold/{count}")
async def hold(count: int) -> None:
    kept = [asyncio.create_task(asyncio.sleep(3)) for _ in range(count)]
    await asyncio.sleep(1.5)
    for one in kept:
        one.cancel()


flask_app = Flask(__name__)


@flask_app.get("/fast/<int:item>")
def flask_fast(item: int) -> str:
    return str(item)


@flask_app.get("/slow/<int:item>")
def flask_slow(item: int) -> str:
    with strobe.region("db.fetch"):
        time.sleep(0.4)
    return str(item)


flask.Stroboscope(flask_app, service="shop")
