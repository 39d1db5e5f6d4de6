"""Two endpoints that are in C nearly all of their time, `app` for ASGI, `wsgi` for WSGI."""

import hashlib
import os
import zlib

from fastapi import FastAPI
from flask import Flask

from stroboscope.integrations import fastapi, flask

DATA = os.urandom(1 << 17)


def pack() -> dict[str, int]:
    return {"size": len(zlib.compress(DATA))}


def sign() -> dict[str, str]:
    return {"key": hashlib.pbkdf2_hmac("sha256", DATA[:9], b"salt", 5000).hex()}


app = FastAPI()
fastapi.install(app, service="shop")
wsgi = Flask(__name__)
flask.Stroboscope(wsgi, service="shop")


@app.get("/pack")
async def pack_async() -> dict[str, int]:
    return pack()


@app.get("/sign")
async def sign_async() -> dict[str, str]:
    return sign()


wsgi.get("/pack")(pack)
wsgi.get("/sign")(sign)
