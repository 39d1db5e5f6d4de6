"""A Flask service under gunicorn: `gunicorn examples.flask_app:app --threads 4`."""

from flask import Flask

from stroboscope.integrations.flask import Stroboscope

app = Flask(__name__)
Stroboscope(app, service="shop")


@app.get("/checkout/<int:item>")
def checkout(item: int):
    return {"total": sum(i * i % (item + 7) for i in range(20_000))}
