"""A FastAPI service with four routes, one of them wrong; tenants come in a header."""

import asyncio
import hashlib
import threading
import time

from fastapi import FastAPI

import stroboscope
from stroboscope.integrations.fastapi import install

app = FastAPI()


def tenant(scope):
    return dict(scope["headers"]).get(b"x-tenant", b"").decode() or None


install(app, service="shop", tenant=tenant)


def price_basket(item: int) -> int:
    return sum(i * i % (item + 7) for i in range(20_000))


def rank_results() -> int:
    return len(sorted(str(i * 7919 % 10_007) for i in range(4_000)))


def draw_page(page: str) -> str:
    digest = page.encode()
    for _ in range(2_000):
        digest = hashlib.sha256(digest).digest()
    return digest.hex()


@stroboscope.region("db.fetch")
async def fetch_basket(item: int) -> int:
    await asyncio.sleep(0.002)  # a database, somewhere
    return item


@app.get("/checkout/{item}")
async def checkout(item: int):
    return {"total": price_basket(await fetch_basket(item))}


@app.get("/search")
async def search():
    return {"hits": rank_results()}


@app.get("/report")
async def report():
    time.sleep(0.4)  # a mistake: the loop stands still; see /debug/stalls
    return {"rows": 7}


printer = threading.Lock()


@app.get("/render/{page}")
def render(page: str):
    with stroboscope.region("cache"):
        stroboscope.log("cache", "miss key-class=%s", "page")
    with printer, stroboscope.region("render"):
        time.sleep(0.01)  # the one printer; see /debug/pprof/mutex
        return {"page": draw_page(page)}
