"""The served application of `bench.requests`: some CPU, a label, a profiler if told."""

import hashlib
import os

PEER = os.environ.get("BENCH_PEER", "")
if PEER == "ddtrace":
    from ddtrace.profiling import Profiler
elif PEER == "pyroscope":
    import pyroscope


def start_peer():
    """In the worker, where these peers want to be started."""
    if PEER == "ddtrace":
        Profiler().start()
    elif PEER == "pyroscope":
        pyroscope.configure(
            application_name="bench",
            server_address=os.environ["BENCH_RECEIVER"],
            sample_rate=100,
            oncpu=True,
        )


def work():
    """About a millisecond, as a small request has."""
    digest = b"x"
    for i in range(400):
        digest = hashlib.sha256(digest + str(i).encode()).digest()
    return {"digest": digest.hex(), "rows": [{"id": i, "name": str(i)} for i in range(200)]}


def fastapi():
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/work/{item}")
    async def endpoint(item: int):
        return work()

    if not PEER:
        from stroboscope.integrations.fastapi import install

        install(app, service="bench")
    start_peer()
    return app


def flask():
    from flask import Flask

    app = Flask(__name__)

    @app.get("/work/<int:item>")
    def endpoint(item):
        return work()

    if not PEER:
        from stroboscope.integrations.flask import Stroboscope

        Stroboscope(app, service="bench")
    start_peer()
    return app
