"""A FastAPI service whose spans go out by OTLP; who is around whom is an option."""

import asyncio
import os

from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import stroboscope as strobe
from stroboscope.integrations.fastapi import install

ORDER = os.environ["TRACED_ORDER"]
provider = TracerProvider(
    resource=Resource({"service.name": os.environ["TRACED_SERVICE"]})
)
provider.add_span_processor(
    BatchSpanProcessor(
        OTLPSpanExporter(os.environ["TRACED_OTLP"]), schedule_delay_millis=200
    )
)
trace.set_tracer_provider(provider)
app = FastAPI()


@app.get("/item/{item}")
async def item(item: int) -> dict[str, int]:
    with strobe.region("db.fetch"):
        await asyncio.sleep(item / 1000)
    with strobe.region("render"):
        await asyncio.sleep(0)
    return {"item": item}


if ORDER == "inside":
    FastAPIInstrumentor.instrument_app(app)
install(app, service="shop")
if ORDER == "later":
    FastAPIInstrumentor.instrument_app(app)
if ORDER == "outside":
    app = OpenTelemetryMiddleware(app)  # type: ignore[assignment]
