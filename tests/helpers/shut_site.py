"""Services in one process, each with another run directory, which is its path, too."""

import os

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from stroboscope.integrations.fastapi import install


def service(rundir: str) -> FastAPI:
    app = FastAPI()
    install(app, service="shop", rundir=rundir)

    @app.get("/works")
    async def works() -> str:
        return rundir

    return app


app = Starlette(
    routes=[Mount(one, service(one)) for one in os.environ["PLACES"].split(":")]
)
