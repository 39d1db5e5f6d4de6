"""A Flask service under gunicorn: `gunicorn examples.flask_app:app --threads 4`."""

import time

from flask import Flask

import stroboscope
from stroboscope.integrations.flask import Stroboscope

app = Flask(__name__)
Stroboscope(app, service="shop")


def price_basket(item: int) -> int:
    return sum(i * i % (item + 7) for i in range(20_000))


def rank_results() -> int:
    return len(sorted(str(i * 7919 % 10_007) for i in range(4_000)))


@app.get("/checkout/<int:item>")
def checkout(item: int):
    with stroboscope.region("db.fetch"):
        time.sleep(0.002)  # a database, somewhere
    with stroboscope.region("render"):
        return {"total": price_basket(item)}


@app.get("/search")
def search():
    return {"hits": rank_results()}
