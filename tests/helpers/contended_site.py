"""Two endpoints that fight for one lock, made at import, and say how long they did.

`app` for ASGI servers, `wsgi` for WSGI servers.
"""

import threading
import time
from typing import Any

from fastapi import FastAPI
from flask import Flask

from stroboscope.integrations import fastapi, flask

STOCK = threading.Lock()


def reserve(seconds: float) -> dict[str, Any]:
    """Hold the lock so long; how long it took to get it."""
    begin = time.perf_counter()
    with STOCK:
        waited = time.perf_counter() - begin
        time.sleep(seconds)
    return {"waited": waited, "held": seconds}


app = FastAPI()
fastapi.install(app, service="shop")


@app.get("/checkout/{item}")
def checkout(item: int) -> dict[str, Any]:
    return reserve(0.1)


@app.get("/search")
def search() -> dict[str, Any]:
    return reserve(0.02)


wsgi = Flask(__name__)
flask.Stroboscope(wsgi, service="shop")
wsgi.get("/checkout/<int:item>")(lambda item: reserve(0.1))
wsgi.add_url_rule("/search", "search", lambda: reserve(0.02))
