"""Two endpoints that wait for known times; one application for each kind of server."""

import asyncio
import time
from typing import Any

from fastapi import FastAPI
from flask import Flask

from stroboscope.integrations import fastapi as for_fastapi
from stroboscope.integrations.flask import Stroboscope

SHORT_S, LONG_S = 0.03, 0.06

asgi = FastAPI()
for_fastapi.install(asgi, service="shop")
app = Flask(__name__)
Stroboscope(app, service="shop")


async def wait_short() -> None:
    await asyncio.sleep(SHORT_S)


async def wait_long() -> None:
    await asyncio.sleep(LONG_S)


def sleep_short() -> None:
    time.sleep(SHORT_S)


def sleep_long() -> None:
    time.sleep(LONG_S)


@asgi.get("/short/{item}")
async def short(item: int) -> Any:
    await wait_short()
    return {"item": item}


@asgi.get("/long/{item}")
async def long(item: int) -> Any:
    await wait_long()
    return {"item": item}


@app.get("/short/<int:item>")
def flask_short(item: int) -> Any:
    sleep_short()
    return {"item": item}


@app.get("/long/<int:item>")
def flask_long(item: int) -> Any:
    sleep_long()
    return {"item": item}
