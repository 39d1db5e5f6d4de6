"""Services whose endpoints keep known amounts of memory, and say in which process."""

import os

from fastapi import FastAPI
from flask import Flask

from stroboscope.integrations.fastapi import install
from stroboscope.integrations.flask import Stroboscope

BLOCK, CALL = 2048, 4 << 20
kept: dict[str, list[list[bytes]]] = {"a": [], "b": [], "c": []}


def hold(name: str) -> dict[str, int]:
    # A list of pointers and blocks with their heads: CALL bytes together.
    kept[name].append([bytes(BLOCK - 8 - 33) for _ in range(CALL // BLOCK)])
    return {"pid": os.getpid()}


def drop(name: str) -> dict[str, int]:
    kept[name].clear()
    return {"pid": os.getpid()}


async def held_on_the_loop() -> dict[str, int]:
    return hold("a")


def held_in_a_pool_thread() -> dict[str, int]:
    return hold("b")


async def held_on_the_loop_as_well() -> dict[str, int]:
    return hold("c")


fastapi_app = FastAPI()
install(fastapi_app, service="shop")
fastapi_app.get("/a")(held_on_the_loop)
fastapi_app.get("/b")(held_in_a_pool_thread)
fastapi_app.get("/c")(held_on_the_loop_as_well)
fastapi_app.get("/drop/{name}")(drop)

flask_app = Flask(__name__)
Stroboscope(flask_app, service="shop")
flask_app.get("/a", endpoint="a")(lambda: hold("a"))
flask_app.get("/b", endpoint="b")(lambda: hold("b"))
flask_app.get("/c", endpoint="c")(lambda: hold("c"))
flask_app.get("/drop/<name>", endpoint="drop")(drop)
